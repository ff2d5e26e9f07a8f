"""Run by ``manage.py test`` in the project, with real workers behind it."""

import hashlib
import io
import os
from pathlib import Path

import pytest
from django.conf import settings
from django.core.exceptions import SuspiciousFileOperation, ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import RequestFactory, TestCase, TransactionTestCase, override_settings
from shop.models import Photo, Poster, Seen

from fsworker.contrib.django import client, ingest, ingest_on_commit, publish_keep_set, serve
from fsworker.contrib.django.keep import hash_columns, kept_hashes
from fsworker.contrib.django.storage import FSWorkerStorage
from fsworker.errors import ConfigError, InvalidHashError, KeepSetError, UploadError

HASH = hashlib.sha1(b"some text").hexdigest()


class Storage(TestCase):
    def test_a_file_is_saved_once_and_named_by_its_hash(self):
        first = default_storage.save("photos/notes.txt", ContentFile(b"some text"))
        second = default_storage.save("other/copy.txt", ContentFile(b"some text"))
        assert (first, second) == (f"{HASH}/notes.txt", f"{HASH}/copy.txt")

    def test_what_was_saved_can_be_read_and_not_written(self):
        name = default_storage.save("a.txt", ContentFile("some text"))  # text is encoded as UTF-8
        with default_storage.open(name) as file:
            assert file.read() == b"some text"
        assert default_storage.size(name) == 9
        assert default_storage.exists(name)
        assert not default_storage.exists("0" * 40 + "/a.txt")
        assert not default_storage.exists("a.txt")
        assert default_storage.get_modified_time(name).tzinfo
        with pytest.raises(ValueError):
            default_storage.open(name, "wb")

    def test_deleting_leaves_the_file_to_whoever_else_has_it(self):
        name = default_storage.save("a.txt", ContentFile(b"some text"))
        default_storage.delete(name)
        assert default_storage.exists(name)

    def test_long_and_hostile_names_fit_the_column(self):
        for given in ("x" * 500 + ".jpeg", "../../etc/passwd", "é" * 99 + ".txt", "C:\\a\\b.txt", "\u202etxt.exe"):
            photo = Photo.objects.create(file=SimpleUploadedFile(given, b"some text"))
            photo.refresh_from_db()
            assert len(photo.file.name) <= 100
            assert photo.file.name.count("/") == 1
            assert self.client.get(photo.file.url).getvalue() == b"some text"
        assert default_storage.get_available_name("x" * 500 + ".jpeg", 100).endswith(".jpeg")
        with pytest.raises(SuspiciousFileOperation):
            default_storage.get_available_name("a.txt", 41)

    def test_what_the_store_refuses_is_an_error_of_the_form_kind(self):
        with pytest.raises(UploadError):
            FSWorkerStorage(media_types=["image/*"]).save("a.txt", ContentFile(b"some text"))


class Forms(TestCase):
    def test_too_many_bytes_end_the_request_and_leave_nothing(self):
        with override_settings(FSWORKER={**settings.FSWORKER, "MAX_BYTES": "1MB"}):
            spool = Path(settings.FSWORKER["STORE"], "Spool", "shop")
            reply = self.client.post("/", {"file": SimpleUploadedFile("a.bin", bytes(1_000_001))})
            assert reply.status_code == 400
            assert list(spool.glob(".*.part")) == []
            assert self.client.post("/", {"file": SimpleUploadedFile("a.bin", bytes(1_000_000))}).status_code == 302


class Urls(TestCase):
    def setUp(self):
        self.url = default_storage.url(default_storage.save("notes.txt", ContentFile(b"some text")))

    def test_a_signed_url_shows_the_file_for_good(self):
        reply = self.client.get(self.url)
        assert (reply.status_code, reply.getvalue()) == (200, b"some text")
        assert reply["Cache-Control"] == "private, max-age=31536000, immutable"
        assert reply["Content-Disposition"] == 'inline; filename="notes.txt"'
        assert self.client.get(self.url, headers={"If-None-Match": reply["ETag"]}).status_code == 304
        part = self.client.get(self.url, headers={"Range": "bytes=5-"})
        assert (part.status_code, part.getvalue()) == (206, b"text")
        assert self.client.head(self.url)["Content-Length"] == "9"
        assert self.client.post(self.url).status_code == 405

    def test_no_other_hash_name_or_signature_is_served(self):
        prefix, name, signature, filename = self.url.rsplit("/", 3)
        other = ingest(b"another's secret").get(timeout=30).hash
        for parts in (
            (other, signature, filename),
            (name, signature, "page.html"),
            (name, signature[:-1] + "x", filename),
        ):
            assert self.client.get("/".join((prefix, *parts))).status_code == 404

    async def test_it_is_the_same_under_asgi(self):
        reply = await self.async_client.get(self.url)
        assert b"".join([piece async for piece in reply]) == b"some text"
        assert (await self.async_client.get(self.url, headers={"If-None-Match": reply["ETag"]})).status_code == 304

    def test_behind_nginx_there_are_only_headers(self):
        with override_settings(FSWORKER={**settings.FSWORKER, "SERVE_WITH": "nginx"}):
            reply = serve(RequestFactory().get("/"), HASH, media_type="text/plain")
        assert reply["X-Accel-Redirect"] == f"/FileStruct/Data/{HASH[:2]}/{HASH[2:4]}/{HASH}"
        assert reply.content == b""

    def test_jobs_are_reported_to_who_knows_their_ids(self):
        job = ingest(b"some text")
        job.get(timeout=30)
        report = self.client.get(f"/files/job/{job.id}").json()
        assert (report["state"], report["result"]["hash"]) == ("done", HASH)
        assert self.client.get("/files/job/blog.0b0ae5a4-6a3c-4f0b-9f43-0d7a2b1c9d10").status_code == 404
        assert self.client.get("/files/job/nonsense").status_code == 404

    def test_a_hash_from_nowhere_is_not_found(self):
        for name in ("0" * 40, "x", "../../FileStruct.json"):
            assert serve(RequestFactory().get("/"), name).status_code == 404


class Columns(TestCase):
    def test_a_hash_column_takes_hashes_only(self):
        for wrong in ("x", HASH.upper(), HASH + "\n"):
            with pytest.raises(ValidationError):
                Poster(picture=wrong).full_clean()
            with pytest.raises(InvalidHashError):
                Poster.objects.create(picture=wrong)
            with pytest.raises(InvalidHashError):
                Poster.objects.bulk_create([Poster(picture=wrong)])
        with pytest.raises(InvalidHashError):
            Poster.objects.create(thumbnails={"small": {"hash": "x"}})

    def test_an_ingest_fits_the_columns(self):
        picture = Path(os.environ["SHOP_PICTURE"]).read_bytes()
        result = ingest(picture, thumbnails={"small": "100x100"}).get(timeout=60)
        poster = Poster(picture=result.hash, thumbnails=result.thumbnails)
        poster.full_clean(exclude=["job"])
        poster.save()
        assert poster.thumbnails["small"]["width"] == 100
        poster.refresh_from_db()
        assert poster.thumbnails["small"]["hash"] == result.thumbnails["small"].hash
        assert set(kept_hashes()) == set(result.hashes)

    def test_hash_columns_are_found(self):
        assert [column.name for column in hash_columns(Poster)] == ["picture", "thumbnails"]
        assert [column.name for column in hash_columns(Photo)] == ["file"]
        assert [column.name for column in hash_columns(Poster, "job")] == ["picture", "thumbnails", "job"]
        with pytest.raises(KeepSetError):
            hash_columns(Poster, "misspelt")

    def test_rows_that_the_default_manager_hides_are_kept(self):
        Poster.objects.create(picture=HASH, deleted=True)
        Seen.objects.create(picture="f" * 40)  # exempt
        assert list(kept_hashes()) == [HASH]

    def test_a_row_with_nonsense_stops_the_keep_set_and_is_named(self):
        photo = Photo.objects.create()
        Photo.objects.filter(pk=photo.pk).update(file="photos/from-before.jpg")
        with pytest.raises(KeepSetError, match=rf"shop.Photo.file of row '{photo.pk}'"):
            list(kept_hashes())


class Transactions(TransactionTestCase):
    def test_workers_hear_of_an_upload_when_its_row_is_committed(self):
        rung = []
        with override_settings():
            files = client()
            ring, files.ring = files.ring, lambda job: (rung.append(job.id), ring(job))
            try:
                with transaction.atomic():
                    job = ingest_on_commit(b"some text")
                    assert (rung, job.state) == ([], "queued")
                assert rung == [job.id]
                with pytest.raises(ZeroDivisionError), transaction.atomic():
                    ingest_on_commit(io.BytesIO(b"never mind"))
                    _ = 1 / 0
                assert rung == [job.id]
            finally:
                files.ring = ring
        assert job.get(timeout=30).hash == HASH

    def test_a_keep_set_is_not_read_inside_another_transaction(self):
        with transaction.atomic(), pytest.raises(KeepSetError, match="transaction of its own"):
            publish_keep_set(allow_empty=True)

    @override_settings(FSWORKER={})
    def test_a_project_without_the_setting_is_told(self):
        with pytest.raises(ConfigError, match="FSWORKER"):
            client()
