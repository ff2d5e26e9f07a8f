from django.urls import include, path
from shop import views

urlpatterns = [
    path("", views.form),
    path("change-of-mind", views.change_of_mind),
    path("poster", views.poster),
    path("list", views.everything),
    path("files/", include("fsworker.contrib.django.urls")),
]
