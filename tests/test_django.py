"""A Django project, made by ``startproject``, with files in a store: forms, URLs, transactions, the keep-set, collection."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import ENVIRONMENT, eventually
from quickstarts import assert_short, quick_start
from stacks import RunningStack, running_stack
from webservers import free_port, program

from fsworker.store.facade import Store

SOURCES = Path(__file__).with_name("django_app")
FORM = "<form method=post enctype=multipart/form-data>{% csrf_token %}{{ form }}<button>Send</button></form>"


@dataclass
class Project:
    """A running project."""

    directory: Path
    stack: RunningStack
    environment: dict[str, str]
    url: str

    def manage(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """``manage.py …``."""
        return manage(self.directory, {**self.environment, **environment}, *arguments, check=check)

    def query(self, code: str) -> Any:
        """What Python code prints, as JSON, with the project's models in ``m``."""
        done = self.manage("shell", "-v", "0", "-c", f"import json, shop.models as m\nprint(json.dumps({code}))")
        return json.loads(done.stdout.splitlines()[-1])


def manage(directory: Path, environment: dict[str, str], *arguments: str, check: bool = True) -> Any:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{arguments}: {done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project, migrated and running, on a store without grace that only it uses."""
    root = tmp_path_factory.mktemp("django")
    Store.create(root / "store", apps=["shop"], grace_s=0).close()
    photo = importlib.resources.files("fsworker").joinpath("demo_photos", "people.jpg")
    (root / "people.jpg").write_bytes(photo.read_bytes())
    with running_stack(root, apps=("shop",)) as stack:
        clean = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("FSWORKER_")}
        environment = {
            **clean,
            "SHOP_STORE": str(stack.store_path),
            "SHOP_REDIS_URL": stack.redis_url,
            "SHOP_PICTURE": str(root / "people.jpg"),
        }
        directory = root / "site"
        directory.mkdir()
        for command in (["startproject", "mysite", "."], ["startapp", "shop"]):
            subprocess.run([sys.executable, "-m", "django", *command], cwd=directory, env=environment, check=True)
        with (directory / "mysite" / "settings.py").open("a") as settings:
            settings.write((SOURCES / "more_settings.py").read_text())
        shutil.copy(SOURCES / "urls.py", directory / "mysite" / "urls.py")
        for name in ("models.py", "views.py", "tests.py"):
            shutil.copy(SOURCES / name, directory / "shop" / name)
        (directory / "shop" / "templates").mkdir()
        (directory / "shop" / "templates" / "form.html").write_text(FORM)
        manage(directory, environment, "makemigrations", "shop")
        manage(directory, environment, "migrate")
        port = free_port()
        start = (port, "manage.py", "runserver", "--noreload", str(port))
        with program(*start, cwd=directory, **{k: v for k, v in environment.items() if k.startswith("SHOP_")}):
            yield Project(directory, stack, environment, f"http://127.0.0.1:{port}")


def send(project: Project, path: str, field: str, name: str, content: bytes, **data: str) -> httpx.Response:
    """Send a form as a browser does: fetch it, take its token, post it."""
    with httpx.Client(base_url=project.url, timeout=60) as browser:
        page = browser.get("/").text
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]  # type: ignore[index]
        return browser.post(path, data={"csrfmiddlewaretoken": token, **data}, files={field: (name, content)})


def photos(project: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{project.url}/list").json()["photos"]
    return found


def kept(project: Project) -> set[str]:
    """What the keep-set of the project would be."""
    script = "import json\nfrom fsworker.contrib.django.keep import kept_hashes\nprint(json.dumps(list(kept_hashes())))"
    return set(json.loads(project.manage("shell", "-v", "0", "-c", script).stdout.splitlines()[-1]))


def spooled(project: Project) -> list[str]:
    """What waits in the spool, or was left there."""
    return [n for n in os.listdir(project.stack.spool()) if not n.endswith(".done") and n != ".store.json"]


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def test_the_project_passes_its_own_tests(project: Project) -> None:
    done = project.manage("test", "-v", "1", check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Ran \d\d tests", done.stderr)


USE_IT = """
from django.core.files.base import ContentFile
from django.test import Client
from shop.models import Photo
photo = Photo.objects.create(file=ContentFile(b"quick", name="start.txt"))
print(Client().get(photo.file.url).getvalue() == b"quick")
"""


def test_the_quick_start_runs(project: Project, tmp_path: Path) -> None:
    assert_short("settings.py", "models.py", "urls.py")
    environment = {
        **project.environment,
        "FSWORKER_STORE": str(project.stack.store_path),
        "FSWORKER_REDIS_URL": project.stack.redis_url,
    }
    for command in (["startproject", "mysite", "."], ["startapp", "shop"]):
        subprocess.run([sys.executable, "-m", "django", *command], cwd=tmp_path, env=environment, check=True)
    with (tmp_path / "mysite" / "settings.py").open("a") as settings:
        settings.write(f"\n{quick_start('settings.py')}\nINSTALLED_APPS += ['shop']\nALLOWED_HOSTS = ['*']\n")
    (tmp_path / "shop" / "models.py").write_text(quick_start("models.py"))
    with (tmp_path / "mysite" / "urls.py").open("a") as urls:
        urls.write(f"\nfrom django.urls import include\n{quick_start('urls.py')}")
    manage(tmp_path, environment, "makemigrations", "shop")
    manage(tmp_path, environment, "migrate", "shop")
    assert manage(tmp_path, environment, "shell", "-v", "0", "-c", USE_IT).stdout.strip() == "True"
    assert "1 hashes" in manage(tmp_path, environment, "publish_keep_set", "--dry-run").stdout


def test_a_form_stores_a_file_and_its_url_shows_it(project: Project) -> None:
    content = b"an upload through a form"
    assert send(project, "/", "file", "Füße.txt", content, title="one").status_code == 302
    (photo,) = [photo for photo in photos(project) if photo["title"] == "one"]
    reply = httpx.get(project.url + photo["url"])
    assert (reply.status_code, reply.content) == (200, content)
    assert reply.headers["Content-Disposition"].startswith("inline; filename=")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert eventually(lambda: spooled(project) == []), "the upload handler left something"


def test_what_a_form_does_not_know_leaves_nothing(project: Project) -> None:
    assert send(project, "/", "other", "x.txt", b"in a field that the form does not have").status_code == 200
    assert eventually(lambda: spooled(project) == [])


def test_a_rolled_back_transaction_leaves_nothing_referenced_and_nothing_lost(project: Project) -> None:
    content = b"changed my mind"
    reply = send(project, "/change-of-mind", "file", "a.txt", content, title="never")
    assert (reply.status_code, reply.text) == (409, f"{sha1(content)}/a.txt")
    assert "never" not in [photo["title"] for photo in photos(project)]
    with project.stack.store() as store:
        assert sha1(content) in store, "the file is stored; nobody keeps it"
    assert sha1(content) not in project.query(
        "list(__import__('fsworker.contrib.django.keep').contrib.django.keep.kept_hashes())"
    )


def test_an_upload_in_a_transaction_is_done_when_it_is_committed(project: Project) -> None:
    picture = (project.stack.directory / "people.jpg").read_bytes()
    reply = send(project, "/poster", "picture", "people.jpg", picture).json()
    url = f"{project.url}/files/job/{reply['job']}"
    assert eventually(lambda: httpx.get(url).json()["state"] == "done", timeout_s=30)
    result = httpx.get(url).json()["result"]
    assert result["hash"] == sha1(picture)
    assert result["thumbnails"]["small"]["width"] == 100


def test_a_model_that_was_forgotten_is_a_warning_and_stops_the_keep_set(project: Project) -> None:
    checked = project.manage("check", SHOP_FORGETS="1")
    assert "fsworker.W001" in checked.stderr
    assert "shop.Forgotten" in checked.stderr
    refused = project.manage("publish_keep_set", SHOP_FORGETS="1", check=False)
    assert refused.returncode == 1
    assert "shop.Forgotten" in refused.stderr
    assert "W001" not in project.manage("check").stderr


MOVE_WHILE_READING = """
import sqlite3
from django.conf import settings
from shop.models import Photo, Poster
from fsworker.contrib.django.keep import kept_hashes
moving = "ab" * 20
Poster.objects.create(picture=moving)
photo = Photo.objects.create(title="moved to")
reading = kept_hashes()
print(next(reading) != moving)                      # of the photos, which have all been read now
with sqlite3.connect(settings.DATABASES["default"]["NAME"]) as other:
    other.execute("UPDATE shop_photo SET file = ? WHERE id = ?", (f"{moving}/a.txt", photo.id))
    other.execute("UPDATE shop_poster SET picture = NULL WHERE picture = ?", (moving,))
other.close()
print(moving in set(reading))
Photo.objects.filter(title="moved to").delete()
"""


def test_a_hash_that_moves_between_two_columns_while_they_are_read_is_kept(project: Project) -> None:
    """It was referred to at every moment, so no keep-set may lack it: all is read in one snapshot of the database."""
    assert photos(project), "the first column has to have a row"
    project.manage(
        "shell", "-v", "0", "-c", "from django.db import connection as c\nc.cursor().execute('PRAGMA journal_mode=WAL')"
    )
    assert project.manage("shell", "-v", "0", "-c", MOVE_WHILE_READING).stdout.split() == ["True", "True"]


def test_collection_takes_what_no_row_has_and_leaves_what_two_rows_share(project: Project) -> None:
    shared, mine, gone = b"shared by two models", b"of one photo", b"of a photo that is deleted"
    for number, content in enumerate((shared, mine, gone)):
        assert send(project, "/", "file", f"{number}.txt", content, title=f"c{number}").status_code == 302
    project.query(
        f"[m.Poster.objects.create(picture='{sha1(shared)}').id, "
        "[p.delete() and p.file.delete(save=False) for p in m.Photo.objects.filter(title__in=['c0', 'c2'])] and 0]"
    )
    said = project.manage("publish_keep_set").stdout
    assert "shop.Poster.picture: " in said
    assert "hashes of application shop published" in said
    collected = subprocess.run(
        [sys.executable, "-m", "fsworker", "gc", "--store", str(project.stack.store_path), "--json"],
        env=project.stack.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert collected.returncode == 0, collected.stderr
    with project.stack.store() as store:
        assert [sha1(content) in store for content in (shared, mine, gone)] == [True, True, False]
        trashed = {path.name for path in store.root.glob("Trash/*/*")}
    assert sha1(gone) in trashed
    assert sha1(b"changed my mind") in trashed, "of the transaction that was rolled back"
    (photo,) = [photo for photo in photos(project) if photo["title"] == "c1"]
    assert httpx.get(project.url + photo["url"]).content == mine
