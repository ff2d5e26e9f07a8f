"""fsworker in a Django project: add ``"fsworker.contrib.django"`` to ``INSTALLED_APPS`` and say whose client this is::

    FSWORKER = {"APP": "shop", "STORE": "/srv/files"}       # and other settings, without FSWORKER_ before them

* ``STORAGES``: :class:`fsworker.contrib.django.storage.FSWorkerStorage` keeps the files of ``FileField``;
* ``FILE_UPLOAD_HANDLERS``: :class:`fsworker.contrib.django.uploads.SpoolUploadHandler` streams into the spool;
* :class:`HashField` and :class:`ThumbnailsField` hold what an ingest gives, for those who do without ``FileField``;
* :func:`register` names the models whose files are kept, and ``manage.py publish_keep_set`` publishes them;
* :func:`ingest` and :func:`ingest_on_commit` hand over uploads, :func:`serve` answers requests for files.
"""

from fsworker.contrib.django.fields import HashField, ThumbnailsField
from fsworker.contrib.django.files import client, ingest, ingest_on_commit
from fsworker.contrib.django.keep import exempt, publish_keep_set, register
from fsworker.contrib.django.responses import serve

__all__ = [
    "HashField",
    "ThumbnailsField",
    "client",
    "exempt",
    "ingest",
    "ingest_on_commit",
    "publish_keep_set",
    "register",
    "serve",
]
