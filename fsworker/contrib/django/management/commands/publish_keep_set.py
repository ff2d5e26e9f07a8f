"""``manage.py publish_keep_set``: tell the store which files the project's models refer to."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from fsworker.contrib.django.keep import Column, kept_hashes, publish_keep_set
from fsworker.errors import FSWorkerError


class Command(BaseCommand):
    """Publish the keep-set. Run it by a timer; files of models that are not in it are collected."""

    help = "Publish the hashes that all registered models refer to: what is in none is collected after its grace."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument("--dry-run", action="store_true", help="Read and count, but publish nothing.")
        parser.add_argument("--allow-empty", action="store_true", help="An empty keep-set is meant.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Publish, and say what was read."""
        try:
            if options["dry_run"]:
                total = sum(1 for _ in kept_hashes(self._counted))
                self.stdout.write(f"{total:,} hashes; nothing was published")
                return
            published = publish_keep_set(allow_empty=options["allow_empty"], counted=self._counted)
        except FSWorkerError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"{published.count:,} hashes of application {published.app} published in {published.seconds:.1f} s"
        )

    def _counted(self, column: Column, count: int) -> None:
        if count:
            self.stdout.write(f"{column.model._meta.label}.{column.name}: {count:,}")
