"""Verification: is every stored file still what its name says, and what else is in the store that should not be.

Theory of operation. A *first look* (:mod:`judging`, :mod:`scanning`) lists ``Data/``, re-hashes every file and raises
suspicions; it changes nothing, so it may run in many threads and processes while files come and go. A *second look*
(:mod:`settling`) believes or drops each, and repairs, if asked: a good copy from trash or a mirror (:mod:`copies`) takes the
place of a rotten file, else the file goes to ``Error/`` (:mod:`quarantine`), so that its name is free for an upload of
the same content. Nothing is ever deleted. :mod:`leftovers` does the same for ``Temp/`` and the spool.

:mod:`whole` is what a person asks for; :mod:`part` what beat asks for, every few minutes: a bounded part of what is due by
:mod:`history`, at a pace. :mod:`mirror` compares a backup with the store, :mod:`telling` tells applications what was lost.
"""
