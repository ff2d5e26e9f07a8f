"use strict";

const $ = (id) => document.getElementById(id);
const uploads = new Map();  // id of a photograph that is being stored -> its line in the list

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// -- uploads: one request for each file, whose body is the file; XMLHttpRequest because it tells how much was sent

function send(file) {
  const bar = make("progress", { max: 1, value: 0 });
  const said = make("span", { textContent: "sending" });
  const line = make("li", {}, make("span", { className: "name", textContent: file.name }), bar, said);
  line.tell = (text, bad) => { said.textContent = text; said.className = bad ? "bad" : ""; };
  $("uploads").append(line);

  const request = new XMLHttpRequest();
  request.open("PUT", "photos?name=" + encodeURIComponent(file.name));
  request.upload.onprogress = (event) => { bar.value = 0.9 * event.loaded / event.total; };
  request.onerror = () => line.tell("not sent: is the network there?", true);
  request.onload = () => {
    if (request.status !== 202) {
      line.tell(request.status === 413 ? "too large" : "refused", true);
      return;
    }
    bar.value = 0.9;
    line.tell("making thumbnails");
    uploads.set(JSON.parse(request.response).id, line);
    refresh();
  };
  request.send(file);
}

function finish(photo, line) {
  if (photo.state === "waiting") return;
  uploads.delete(photo.id);
  if (photo.state === "ready") { line.remove(); return; }
  line.querySelector("progress").value = 1;
  if (photo.state === "duplicate") {
    line.tell("is here already");
    highlight(photo.same_as);
  } else {
    line.tell(photo.message || "could not be stored", true);
  }
  setTimeout(() => line.remove(), 15000);
}

// -- photographs

const shown = new Map();  // id -> its element

function card(photo) {
  const image = make("img", { src: `photos/${photo.id}/small`, alt: photo.name, width: photo.small_width,
                              height: photo.small_height });
  const remove = make("button", { title: "Delete", textContent: "×" });
  remove.setAttribute("aria-label", `Delete ${photo.name}`);
  remove.onclick = async () => {
    await fetch(`photos/${photo.id}`, { method: "DELETE" });
    refresh();
  };
  const item = make("li", {}, make("a", { href: `photos/${photo.id}/original` }, image), make("p", {},
    make("span", { className: "name", textContent: photo.name }),
    make("span", { className: "size", textContent: `${photo.width} × ${photo.height}` })), remove);
  item.dataset.id = photo.id;
  return item;
}

function highlight(id) {
  const item = shown.get(id);
  if (!item) return;
  item.classList.add("again");
  item.scrollIntoView({ block: "nearest" });
  setTimeout(() => item.classList.remove("again"), 15000);
}

let asking = false;

async function refresh() {
  if (asking) return;
  asking = true;
  try {
    const photos = await (await fetch("photos")).json();
    const ready = photos.filter((photo) => photo.state === "ready");
    const ids = new Set(ready.map((photo) => photo.id));
    for (const [id, item] of shown) if (!ids.has(id)) { item.remove(); shown.delete(id); }
    for (const photo of ready.reverse()) {
      if (!shown.has(photo.id)) {
        shown.set(photo.id, card(photo));
        $("photos").prepend(shown.get(photo.id));
      }
    }
    for (const photo of photos) if (uploads.has(photo.id)) finish(photo, uploads.get(photo.id));
    $("count").textContent = ready.length === 1 ? "1 photograph" : `${ready.length} photographs`;
  } catch (error) {
    console.warn(error);
  } finally {
    asking = false;
  }
}

// -- dropping and choosing

const drop = $("drop");
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  [...event.dataTransfer.files].forEach(send);
});
drop.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") $("choose").click(); });
$("choose").addEventListener("change", (event) => { [...event.target.files].forEach(send); event.target.value = ""; });

refresh();
setInterval(() => { if (uploads.size) refresh(); }, 400);
setInterval(refresh, 5000);
