"""A form, the same form in a transaction that is rolled back, a poster from an upload, and what there is."""

from django import forms
from django.db import transaction
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from shop.models import Photo, Poster

from fsworker.contrib.django import ingest_on_commit


class PhotoForm(forms.ModelForm):
    class Meta:
        model = Photo
        fields = ("title", "file")


def form(request):
    photo = PhotoForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and photo.is_valid():
        photo.save()
        return HttpResponseRedirect("/list")
    return HttpResponse(render(request, "form.html", {"form": photo}))


def change_of_mind(request):
    photo = PhotoForm(request.POST, request.FILES)
    try:
        with transaction.atomic():
            name = photo.save().file.name
            raise RuntimeError
    except RuntimeError:
        return HttpResponse(name, status=409)


def poster(request):
    with transaction.atomic():
        job = ingest_on_commit(request.FILES["picture"], thumbnails={"small": "100x100"})
        made = Poster.objects.create(job=job.id)
    return JsonResponse({"id": made.id, "job": job.id})


def everything(request):
    photos = [{"id": photo.id, "title": photo.title, "url": photo.file.url} for photo in Photo.objects.all()]
    return JsonResponse({"photos": photos})
