"""URLs of files and jobs: ``path("files/", include("fsworker.contrib.django.urls"))``."""

from django.urls import path

from fsworker.contrib.django import views

app_name = "fsworker"
urlpatterns = [
    path("<str:hash>/<str:signature>/<str:filename>", views.file, name="file"),
    path("job/<str:job_id>", views.job, name="job"),
]
