// The page: one connection to the viewer, one card per camera.

import { Card } from "./card.js";
import { readPicture } from "./picture.js";

const VIEWS = ["both", "mask", "preview"];
const SILENCE_MS = 6000; // the viewer speaks once a second
const SILENT_MS = 10_000; // and for so long with both of them: what is wrong?
const IDLE_MS = 5000; // cameras that send have no mask for so long: are there a gateway and a worker?
const RETRY_MS = { first: 500, most: 10_000 };
const at = (id) => document.getElementById(id);

const cards = new Map();
const bundles = new Map(); // hash -> classes [{name, colour}]
const form = document.querySelector(".view");

const page = {
  view: "both",
  opacity: 0.6,
  regions: false, // whether the pictures say how each region was coded
  clockOffset: 0, // viewer's clock minus this browser's
  greeted: false, // whether this connection has told the viewer's clock
  linked: Infinity, // since when this page hears of cameras: it has the viewer, and the viewer its broker
  nodes: { gateway: [], worker: [] }, // the names of those that are online, as far as is heard
  complete: Infinity, // since when there are both
  problem: "", // with the connection
  now: () => Date.now() + page.clockOffset,
  // A mask names its bundle by the beginning of the hash.
  classesOf(bundle) {
    for (const [hash, classes] of bundles) if (bundle && hash.startsWith(bundle)) return classes;
    return [];
  },
};

function cardOf(name) {
  if (cards.has(name)) return cards.get(name);
  const card = new Card(name, page);
  cards.set(name, card);
  const after = [...cards.keys()].sort().find((other) => other > name);
  at("cameras").insertBefore(card.root, after ? cards.get(after).root : null);
  count();
  return card;
}

const several = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;

function count() {
  const linked = page.linked < Infinity; // what was online before may be so no more
  const online = [...cards.values()].filter((card) => card.state === "online").length;
  const all = several(cards.size, "camera");
  const cameras = linked && online < cards.size ? `${all}, ${online} online` : all;
  const { gateway, worker } = linked ? page.nodes : { gateway: [], worker: [] };
  const workers = worker.length ? ` · ${several(worker.length, "worker")}` : "";
  at("zoning").hidden = ![...cards.values()].some((card) => card.zoned);
  at("count").textContent = cameras + workers;
  at("count").title = [...gateway.map((name) => `gateway ${name}`), ...worker.map((name) => `worker ${name}`)].join("\n");
  at("empty").hidden = cards.size > 0 || !page.greeted;
}

function take(message) {
  if (message.type === "viewer") return takeViewer(message);
  if (message.type === "bundle") {
    bundles.set(message.bundle.hash, message.bundle.classes);
    return cards.forEach((card) => card.showLegend());
  }
  if (message.type === "nodes") {
    page.nodes = { gateway: message.gateway, worker: message.worker };
    const complete = message.gateway.length && message.worker.length;
    page.complete = complete ? Math.min(page.complete, performance.now()) : Infinity;
    return count();
  }
  if (message.type === "gone") forget(message.camera);
  else takeOfCamera(cardOf(message.camera), message);
}

function takeOfCamera(card, message) {
  const before = card.state;
  card.take(message);
  if (message.type === "state" || card.state !== before) count();
}

function forget(name) {
  cards.get(name)?.setFull(false);
  cards.get(name)?.root.remove();
  cards.delete(name);
  count();
}

// A viewer that was started again may not know all the cameras that the page still shows.
function forgetSilent() {
  if (page.greeted) cards.forEach((card, name) => card.heard || forget(name));
}

function takeViewer(message) {
  // A message that was under way for long makes the offset too small, never too large.
  const offset = message.now_ms - Date.now();
  page.clockOffset = page.greeted ? Math.max(page.clockOffset, offset) : offset;
  page.greeted = true;
  page.linked = message.connected ? Math.min(page.linked, performance.now()) : Infinity;
  if (message.connected) showLink("live", "live");
  else showLink("waiting", "no broker", "The viewer has lost its broker and is trying again; the pictures are the last that came.");
}

function showLink(link, text, problem = "") {
  at("link").dataset.link = link;
  at("link").textContent = text;
  page.problem = problem;
  showBanner();
  count();
  document.body.classList.toggle("cut", link === "lost");
}

function showBanner() {
  const missing = ["gateway", "worker"].find((kind) => !page.nodes[kind].length);
  const idle = (ms) => [...cards.values()].some((card) => card.sends(ms));
  let banner = page.problem;
  if (!banner && missing && idle(IDLE_MS)) banner = `No ${missing} is online, so no masks are made. Start one: maskcast ${missing}`;
  else if (!banner && performance.now() - page.complete > SILENT_MS && idle(SILENT_MS)) banner = "Cameras send, and no masks come: gateway and workers say why in their logs and at /readyz.";
  if (at("banner").textContent !== banner) at("banner").textContent = banner;
  at("banner").hidden = !banner;
}

function connect(wait = RETRY_MS.first) {
  const address = new URL("ws", location.href); // a proxy may have put the page below a folder
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  let watch = setTimeout(() => socket.close(), SILENCE_MS);
  let taken = false;
  socket.onmessage = ({ data }) => {
    taken = true;
    clearTimeout(watch);
    watch = setTimeout(lose, SILENCE_MS);
    if (!page.greeted) setTimeout(forgetSilent, SILENCE_MS);
    wait = RETRY_MS.first;
    take(typeof data === "string" ? JSON.parse(data) : readPicture(data));
  };
  socket.onclose = lose;
  function lose() {
    clearTimeout(watch);
    socket.onclose = socket.onmessage = null;
    socket.close();
    page.greeted = false;
    page.linked = Infinity;
    showLink("lost", "not connected", "Connection lost, trying again.");
    if (!taken) sayWhy();
    cards.forEach((card) => (card.heard = false));
    setTimeout(connect, wait * (0.5 + Math.random()), Math.min(wait * 2, RETRY_MS.most));
  }
}

// A browser does not tell a page why a socket was refused; the same address answers a plain request.
async function sayWhy() {
  const answer = await fetch("ws").catch(() => null);
  if (!answer || page.greeted) return;
  if (answer.status === 503) {
    showLink("lost", "too many", "As many browsers as this viewer allows are looking on; trying again.");
  } else if (answer.status === 400) {
    showLink("lost", "refused", "The viewer answers, but not its live feed: a proxy in front of it has to pass WebSockets and the Host header on.");
  }
}

// Storage may be forbidden, and what is in it may be anything.
function keptView() {
  try {
    return JSON.parse(localStorage.getItem("view")) ?? {};
  } catch {
    return {};
  }
}

function keepView(view) {
  try {
    localStorage.setItem("view", JSON.stringify(view));
  } catch {
    // Then it is chosen anew next time.
  }
}

function choose() {
  page.view = form.elements.view.value;
  page.opacity = form.elements.opacity.value / 100;
  form.elements.percent.value = `${form.elements.opacity.value} %`;
  form.elements.opacity.disabled = page.view !== "both";
  page.regions = form.elements.regions.checked;
  const zones = form.elements.zones.checked;
  document.body.classList.toggle("coded", page.regions);
  document.body.classList.toggle("zoned", zones);
  keepView({ view: page.view, opacity: form.elements.opacity.value, regions: page.regions, zones });
  cards.forEach((card) => {
    card.draw();
    card.showRegions();
  });
}

const kept = keptView();
if (VIEWS.includes(kept.view)) form.elements.view.value = kept.view;
if (kept.opacity) form.elements.opacity.value = kept.opacity;
form.elements.regions.checked = kept.regions === true;
form.elements.zones.checked = kept.zones !== false;
form.addEventListener("input", choose);
choose();
connect();
setInterval(() => {
  cards.forEach((card) => card.tick());
  showBanner();
}, 200);
