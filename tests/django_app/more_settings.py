# What a project adds for fsworker, as the README shows it.
import os

INSTALLED_APPS = [*INSTALLED_APPS, "fsworker.contrib.django", "shop"]  # noqa: F821
FSWORKER = {"APP": "shop", "STORE": os.environ["SHOP_STORE"], "REDIS_URL": os.environ["SHOP_REDIS_URL"]}
STORAGES = {
    "default": {"BACKEND": "fsworker.contrib.django.storage.FSWorkerStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
FILE_UPLOAD_HANDLERS = ["fsworker.contrib.django.uploads.SpoolUploadHandler"]
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
