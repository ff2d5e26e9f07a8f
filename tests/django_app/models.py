"""Two models that may share a file, one that keeps nothing alive, and one that somebody may forget."""

import os

from django.db import models

from fsworker.contrib.django import HashField, ThumbnailsField, exempt, register


@register
class Photo(models.Model):
    title = models.CharField(max_length=100, blank=True)
    file = models.FileField(upload_to="photos/")


class Shown(models.Manager):
    def get_queryset(self):
        return super().get_queryset().filter(deleted=False)


@register
class Poster(models.Model):
    picture = HashField(null=True, blank=True)
    thumbnails = ThumbnailsField(default=dict)
    job = models.CharField(max_length=100, blank=True)
    deleted = models.BooleanField(default=False)
    objects = Shown()


@exempt
class Seen(models.Model):
    picture = HashField()


if os.environ.get("SHOP_FORGETS"):

    class Forgotten(models.Model):
        picture = HashField()
