"use strict";

const $ = (id) => document.getElementById(id);
const body = document.body.classList;
let about = null; // what the server told of itself
let picture = null; // the file that is shown
let result = null; // {url, settings} of what can be downloaded
let running = null; // the request under way
const urls = new Set();

class Failure extends Error {}

function url(blob) {
  const made = URL.createObjectURL(blob);
  urls.add(made);
  return made;
}

function forget(made) {
  if (urls.delete(made)) URL.revokeObjectURL(made);
}

function complain(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
  if (message) $("error").scrollIntoView({ block: "nearest" });
}

function megabytes(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

// A picture to the server, and its answer; a busy server is asked again when it says.
async function ask(fields, signal) {
  for (let attempt = 0; ; attempt += 1) {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    let response;
    try {
      response = await fetch("api/enhance", { method: "POST", body: form, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server does not answer. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 503 && attempt < 5) {
      const seconds = Number(response.headers.get("Retry-After")) || 2;
      $("status").textContent = `The server is busy; trying again in ${seconds} s.`;
      await wait(seconds, signal);
      continue;
    }
    let message = `The server answered with status ${response.status}.`;
    if ((response.headers.get("Content-Type") || "").includes("json")) {
      message = (await response.json()).error;
    }
    throw new Failure(message);
  }
}

function nameOf(response) {
  const header = response.headers.get("Content-Disposition") || "";
  const coded = header.match(/filename\*=UTF-8''([^;]+)/);
  if (coded) return decodeURIComponent(coded[1]);
  const plain = header.match(/filename="((?:[^"\\]|\\.)*)"|filename=([^;]+)/);
  return plain ? (plain[1] ?? plain[2]).replace(/\\(.)/g, "$1") : "picture";
}

// Shows a file in an image; what a browser cannot show, e.g. a TIFF, comes from the server as PNG.
async function show(image, file, signal) {
  const old = image.dataset.url;
  const next = new Image();
  let made = url(file);
  try {
    next.src = made;
    await next.decode();
  } catch {
    forget(made);
    const response = await ask({ file, strength: "0", format: "png" }, signal);
    made = url(await response.blob());
    next.src = made;
    await next.decode();
  }
  if (signal.aborted) {
    forget(made);
    throw signal.reason;
  }
  image.src = made;
  image.dataset.url = made;
  if (old) forget(old);
  return next;
}

function settings() {
  return { model: $("model").value, strength: $("strength").value };
}

// Shows `picture`, enhanced as the settings say.
async function enhance(fresh) {
  if (!picture) return;
  running?.abort();
  const mine = new AbortController();
  running = mine;
  const signal = mine.signal;
  const begun = performance.now();
  complain("");
  body.add("busy");
  $("bar").hidden = false;
  $("status").textContent = "Enhancing …";
  const ticking = setInterval(() => {
    const seconds = Math.round((performance.now() - begun) / 1000);
    if (seconds > 1) $("status").textContent = `Enhancing … ${seconds} s`;
  }, 1000);
  try {
    const used = settings();
    const answer = ask({ file: picture, ...used }, signal);
    answer.catch(() => {}); // awaited below
    if (fresh) {
      const seen = await show($("before"), picture, signal);
      $("compare").style.setProperty("--ratio", seen.naturalWidth / seen.naturalHeight);
      $("name").textContent = picture.name;
      $("facts").textContent =
        `${seen.naturalWidth} × ${seen.naturalHeight}, ${megabytes(picture.size)}`;
      $("drop").hidden = true;
      $("viewer").hidden = false;
      $("another").hidden = false;
    }
    const response = await answer;
    const name = nameOf(response);
    const file = new File([await response.blob()], name,
      { type: response.headers.get("Content-Type") });
    await show($("after"), file, signal);
    if (result) forget(result.url);
    result = { url: url(file), settings: used };
    $("download").href = result.url;
    $("download").download = name;
    $("download").hidden = false;
    body.remove("waiting");
    const model = about.models.find((one) => one.name === used.model);
    $("maps").hidden = !model.maps.length;
    $("status").textContent =
      `Done in ${((performance.now() - begun) / 1000).toFixed(1)} s, ${megabytes(file.size)}.`;
    clearInterval(ticking);
    body.remove("busy");
    await drawMaps(signal);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Failure)) console.error(error);
    complain(error instanceof Failure ? error.message : "This page failed; its console says more.");
    $("status").textContent = "";
    if (body.contains("waiting")) start();
  } finally {
    clearInterval(ticking);
    if (running === mine) {
      running = null;
      body.remove("busy");
      $("bar").hidden = true;
    }
  }
}

// The maps cost another run, so they come when they are looked at.
async function drawMaps(signal) {
  if (!$("maps").open || $("maps").hidden || $("drawn").dataset.of === key()) return;
  const of = key();
  $("drawn").replaceChildren("Drawing …");
  const response = await ask({ file: picture, ...settings(), maps: "1" }, signal);
  const files = unpack(await response.arrayBuffer()).slice(1); // the first is the picture
  const model = about.models.find((one) => one.name === $("model").value);
  for (const image of $("drawn").querySelectorAll("img")) forget(image.src);
  $("drawn").replaceChildren(...model.maps.map((name) => {
    const file = files.find((one) => one.name.endsWith(`_${name}.png`));
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.src = url(file);
    image.alt = `Map: ${name}`;
    const caption = document.createElement("figcaption");
    const link = document.createElement("a");
    link.href = image.src;
    link.download = file.name;
    link.textContent = name;
    caption.append(link);
    figure.append(image, caption);
    return figure;
  }));
  $("drawn").dataset.of = of;
}

function key() {
  return `${picture.name} ${picture.size} ${picture.lastModified} ${$("model").value}`;
}

// The files of a ZIP that holds them uncompressed, as this server's do.
function unpack(buffer) {
  const view = new DataView(buffer);
  const files = [];
  for (let at = 0; view.getUint32(at, true) === 0x04034b50;) {
    const size = view.getUint32(at + 18, true);
    const named = view.getUint16(at + 26, true);
    const from = at + 30 + named + view.getUint16(at + 28, true);
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 30, named));
    files.push(new File([new Uint8Array(buffer, from, size)], name, { type: "image/png" }));
    at = from + size;
  }
  return files;
}

function take(file) {
  if (!file || !about) return;
  if (file.size > about.limits.bytes) {
    complain(`${file.name}: ${megabytes(file.size)}, and this server takes at most ` +
      `${megabytes(about.limits.bytes)}; cut or shrink the picture first.`);
    return;
  }
  picture = file;
  body.add("waiting");
  move(50);
  $("download").hidden = true;
  $("maps").hidden = true;
  $("drawn").replaceChildren();
  delete $("drawn").dataset.of;
  enhance(true);
}

// Back to the empty page.
function start() {
  running?.abort();
  picture = null;
  if (result) forget(result.url);
  result = null;
  body.remove("waiting");
  for (const id of ["viewer", "download", "another", "maps"]) $(id).hidden = true;
  for (const id of ["before", "after"]) {
    forget($(id).dataset.url);
    $(id).removeAttribute("src");
    delete $(id).dataset.url;
  }
  $("status").textContent = "";
  $("drop").hidden = false;
  $("file").value = "";
}

function move(value) {
  $("at").value = value;
  $("at").setAttribute("aria-valuetext", `${Math.round(value)} %`);
  $("compare").style.setProperty("--at", `${value}%`);
}

function tellStrength() {
  const text = `${Math.round($("strength").value * 100)} %`;
  $("strength-text").textContent = text;
  $("strength").setAttribute("aria-valuetext", text);
}

function tellModel() {
  const model = about.models.find((one) => one.name === $("model").value);
  $("licence").textContent = model.licence ? `Licence of its weights: ${model.licence}` : "";
}

$("at").addEventListener("input", () => move($("at").value));
$("strength").addEventListener("input", tellStrength);
$("strength").addEventListener("change", () => enhance(false));
$("model").addEventListener("change", () => {
  tellModel();
  enhance(false);
});
$("maps").addEventListener("toggle", () => {
  if (!$("maps").open || running || !picture) return;
  enhanceMaps();
});
$("file").addEventListener("change", () => take($("file").files[0]));
$("another").addEventListener("click", () => {
  complain("");
  start();
  $("file").focus();
});
$("form").addEventListener("submit", (event) => event.preventDefault());

async function enhanceMaps() {
  const mine = new AbortController();
  running = mine;
  $("bar").hidden = false;
  try {
    await drawMaps(mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) {
      complain(error.message);
      $("drawn").replaceChildren();
    }
  } finally {
    if (running === mine) {
      running = null;
      $("bar").hidden = true;
    }
  }
}

let depth = 0; // a drag enters and leaves each element that it passes
addEventListener("dragenter", (event) => {
  event.preventDefault();
  depth += 1;
  body.add("dragging");
});
addEventListener("dragleave", () => {
  depth -= 1;
  if (depth <= 0) body.remove("dragging");
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  body.remove("dragging");
  take(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  take([...event.clipboardData.files].find((file) => file.type.startsWith("image/")));
});

(async () => {
  $("here").textContent = new URL(".", location.href).href;
  try {
    about = await (await fetch("api/models")).json();
  } catch {
    complain("The server does not answer. Is it still running?");
    return;
  }
  $("model").replaceChildren(...about.models.map((one) => new Option(
    one.name === one.method ? one.name : `${one.name} (${one.method})`, one.name)));
  $("file").accept = ["image/*", ...about.formats].join();
  $("limits").textContent = `At most ${megabytes(about.limits.bytes)} and ` +
    `${Math.round(about.limits.pixels / 1e6)} megapixels.`;
  tellModel();
  tellStrength();
  take($("file").files[0]); // chosen before the page was ready, or kept by a reload
})();
