// One camera on the page: its picture, its numbers, its legend.

import { NewestPicture, colourKey, readPalette } from "./picture.js";
import { RateCurve } from "./rates.js";
import { RegionGrid } from "./regions.js";
import { Zones } from "./zones.js";

const STALE_MS = { late: 1500, old: 5000 };
const SILENT_MS = 5000; // statistics come once a second; those of a camera that sends no more say nothing of now
const LEGEND_ROWS = 6;
const MOST_WAITING = 32; // previews that wait for their masks, and for how long: some masks never come
const WAITING_MS = 1500;
const SILENT = new Map([["waiting", "no source yet"], ["lost", "source lost"]]);
const LEAST_SCORE = 0.5; // of a class that is said to be in the picture

const number = (value, digits = 0) => (value == null ? "–" : value.toFixed(digits));
const clockTime = (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
const percent = (share) => (share < 0.0995 ? `${(share * 100).toFixed(1)} %` : `${Math.round(share * 100)} %`);

export function ageText(ms) {
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s ago`;
  if (ms < 90_000) return `${Math.round(ms / 1000)} s ago`;
  if (ms < 5_400_000) return `${Math.round(ms / 60_000)} min ago`;
  return `${Math.round(ms / 3_600_000)} h ago`;
}

// "host 10.0.0.2 <-> srflx 192.0.2.7": the addresses are for who looks closer
function pathText(path) {
  const kinds = path?.split(" <-> ").map((end) => end.split(" ")[0]);
  return kinds?.length === 2 ? ` ${kinds.join(" ↔ ")}` : "";
}

// Whether a preview is of the frame of a mask or of one before it; of one that does not say, or of another run, it is.
const isBy = (preview, frame) =>
  preview.sequence == null || preview.epoch !== frame?.epoch || (frame.sequence - preview.sequence) >>> 0 < 2 ** 31;

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Card {
  // page: {view, opacity, regions, linked, now(), classesOf(bundle)}, shared by all cards
  constructor(name, page) {
    this.name = name;
    this.page = page;
    this.root = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.root.dataset.camera = name;
    this.part = (selector) => this.root.querySelector(selector);
    this.canvas = this.part("canvas");
    this.pen = this.canvas.getContext("2d");
    this.lookup = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    this.images = { mask: null, preview: null };
    this.masks = new NewestPicture((image, picture) => this.showMask(image, picture));
    this.previews = new NewestPicture((image, picture) => this.showPreview(image, picture));
    this.waiting = []; // previews of frames whose masks have not come
    this.palette = new Map();
    this.labels = null; // those not shown yet
    this.curve = new RateCurve(this.part(".curve"));
    this.grid = new RegionGrid(this.part(".regions"));
    this.zones = new Zones(this.part(".zones"), this.part(".zonings"));
    this.regions = ""; // how those of the mask that is shown were coded
    this.allClasses = false;
    this.sendingSince = Infinity; // on this page's clock, as all that is waited for: cameras have clocks of their own
    this.arrived = -Infinity; // when the newest mask, or labels, did
    this.part(".name").textContent = name;
    this.listen();
    this.showState(null, null);
  }

  listen() {
    const picture = this.part(".picture");
    picture.addEventListener("click", () => this.setFull(!this.root.classList.contains("full")));
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.setFull(false);
    });
    picture.addEventListener("pointermove", (event) => {
      const box = this.canvas.getBoundingClientRect();
      this.pointer = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
      this.showPointed();
    });
    picture.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.showPointed();
    });
    this.part(".more").addEventListener("click", () => {
      this.allClasses = !this.allClasses;
      this.showLegend();
    });
  }

  setFull(full) {
    this.root.classList.toggle("full", full);
    document.body.classList.toggle("behind", full);
    this.part(".picture").setAttribute("aria-pressed", full);
    this.describe();
    this.showLegend();
  }

  take(message) {
    this.heard = true;
    if (message.type === "mask") this.takeMask(message);
    else if (message.type === "preview") this.previews.take(message);
    else if (message.type === "stats") this.showStats(message.stats, message.at_ms);
    else if (message.type === "rates") this.curve.begin(message.rates);
    else if (message.type === "labels") this.takeLabels(message.labels);
    else this.showState(message.state, message.since_ms);
  }

  // Whether its frames should have become masks by now: it was seen to send for so long, and nothing came of it since.
  sends(idleMs) {
    const since = Math.max(this.sendingSince, this.arrived, this.page.linked);
    return performance.now() - since > Math.max(idleMs, 3000 / this.fps);
  }

  // Of a camera whose state nobody told, masks say that it is there.
  arrive() {
    this.arrived = performance.now();
    if (this.state === "waiting") this.showState(null, null);
  }

  takeMask(message) {
    this.arrive();
    if (this.page.regions) this.grid.note(message.regions);
    this.masks.take(message);
  }

  showMask(image, picture) {
    this.palette = readPalette(picture.bytes);
    this.captured = picture.captured_ms;
    this.bundle = picture.bundle;
    this.regions = picture.regions;
    this.frame = { epoch: picture.epoch, sequence: picture.sequence };
    this.showRegions();
    this.showWaiting();
    this.showImage("mask", image);
    this.showPointed();
    this.tick();
  }

  // A mask comes later than its picture: laid over a newer one it would lag behind what moves.
  showPreview(image, picture) {
    this.waiting.push({ image, epoch: picture.epoch, sequence: picture.sequence, until: Date.now() + WAITING_MS });
    this.showWaiting();
  }

  showWaiting() {
    const now = Date.now();
    const due = this.waiting.findLastIndex((one) => isBy(one, this.frame) || one.until < now);
    const count = Math.max(due + 1, this.waiting.length - MOST_WAITING);
    if (count === 0) return;
    const shown = this.waiting.splice(0, count);
    shown.slice(0, -1).forEach((one) => one.image.close());
    this.showImage("preview", shown.at(-1).image);
  }

  showRegions() {
    if (this.page.regions) this.grid.show(this.regions);
  }

  showImage(kind, image) {
    this.images[kind]?.close();
    this.images[kind] = image;
    this.draw();
  }

  draw() {
    const { mask, preview } = this.images;
    const leading = mask ?? preview;
    if (!leading) return;
    // The mask gives the shape; a finer preview keeps its detail.
    const scale = Math.max(1, (preview?.width ?? 0) / leading.width);
    const width = Math.round(leading.width * scale);
    const height = Math.round(leading.height * scale);
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.shape();
    }
    const { view, opacity } = this.page;
    this.pen.clearRect(0, 0, width, height);
    if (preview && (view !== "mask" || !mask)) this.pen.drawImage(preview, 0, 0, width, height);
    if (mask && (view !== "preview" || !preview)) {
      this.pen.globalAlpha = view === "both" && preview ? opacity : 1;
      this.pen.drawImage(mask, 0, 0, width, height);
      this.pen.globalAlpha = 1;
    }
  }

  // Masks are of the bundle's size: what the camera sees is as wide and high as its source.
  shape() {
    const { width, height } = this.source ?? this.canvas;
    this.root.style.setProperty("--ratio", width / height);
  }

  showPointed() {
    const label = this.part(".pointed");
    label.hidden = !this.pointer || !this.images.mask;
    if (label.hidden) return;
    const { width, height } = this.images.mask;
    const x = Math.min(width - 1, Math.max(0, Math.floor(this.pointer.x * width)));
    const y = Math.min(height - 1, Math.max(0, Math.floor(this.pointer.y * height)));
    this.lookup.drawImage(this.images.mask, -x, -y); // the one pixel that is pointed at
    const [red, green, blue] = this.lookup.getImageData(0, 0, 1, 1).data;
    const index = this.palette.get(colourKey(red, green, blue));
    label.lastElementChild.textContent = this.page.classesOf(this.bundle)[index]?.name ?? `class ${index ?? "?"}`;
    label.firstElementChild.style.background = `rgb(${red} ${green} ${blue})`;
    label.style.left = `${this.pointer.x * 100}%`;
    label.style.top = `${this.pointer.y * 100}%`;
    label.classList.toggle("leftwards", this.pointer.x > 0.6);
  }

  showState(state, since) {
    this.state = state?.state ?? (performance.now() - this.arrived < SILENT_MS ? "online" : "waiting");
    const sends = this.state === "online" && !SILENT.has(state?.source) && !state?.control?.pause;
    this.sendingSince = sends ? Math.min(this.sendingSince, performance.now()) : Infinity;
    this.fps = state?.fps || 1;
    this.bundle ??= state?.bundle;
    this.root.dataset.state = this.state;
    this.root.dataset.source = state?.source ?? "ok";
    this.root.dataset.paused = Boolean(state?.control?.pause);
    if (state?.source_width && state.source_height) {
      this.source = { width: state.source_width, height: state.source_height };
      this.shape();
    }
    const started = this.state !== "online" && since == null && state?.since;
    const when = since ? ` since ${clockTime(since)}` : "";
    const silent = this.state === "online" && (SILENT.get(state?.source) ?? (state?.control?.pause && "paused"));
    this.part(".badge").textContent = silent || (this.state === "waiting" ? "no word yet" : this.state);
    this.part(".badge").title = since ? `${this.state} since ${new Date(since).toLocaleString()}` : "";
    const note = { offline: "Offline", stopped: "Stopped" }[this.state];
    this.part(".note").textContent = note ? `${note}${when}` : "";
    if (note && started) this.part(".note").textContent += `, had started at ${clockTime(started)}`;
    this.zoned = Object.keys(state?.zones ?? {}).length > 0;
    this.zones.show(state?.zones);
    this.showTransport(state);
    this.describe();
  }

  // A camera that is away has no way here: what it last had says nothing.
  showTransport(state) {
    const label = this.part(".transport");
    label.hidden = this.state !== "online" || !state?.transport;
    if (label.hidden) return;
    label.textContent = state.transport + pathText(state.path);
    label.title = state.path ? `gateway and camera: ${state.path}` : "";
  }

  describe() {
    const full = this.root.classList.contains("full");
    this.part(".picture").setAttribute("aria-label", `${this.name}: ${full ? "back to all cameras" : "full size"}`);
    this.canvas.setAttribute("aria-label", `Classes seen by ${this.name}, ${this.part(".badge").textContent}`);
  }

  showStats(stats, at) {
    if (!stats) return;
    this.counted = Date.now();
    this.showNumbers(stats);
    this.curve.add(at, stats.kbit_s);
    this.showDrops(Object.entries(stats.drops));
    const share = Object.entries(stats.share).filter(([, part]) => part >= 0.0005);
    if (share.length) this.share = share.sort((a, b) => b[1] - a[1]); // a second without masks has none
    this.showLegend();
    this.zones.tell(stats.zones, (name, seen) => this.zoneRow(name, seen));
  }

  showNumbers(stats) {
    this.part(".fps").textContent = number(stats.fps, 1);
    this.part(".kbit").textContent = number(stats.kbit_s, stats.kbit_s < 100 ? 1 : 0);
    this.part(".p50").textContent = number(stats.latency_p50_ms);
    this.part(".p95").textContent = number(stats.latency_p95_ms);
    const keys = stats.key_share == null ? null : stats.key_share * 100;
    this.part(".keys").textContent = number(keys, keys > 0 && keys < 9.95 ? 1 : 0);
  }

  showDrops(drops) {
    const counted = drops.filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
    const total = counted.reduce((sum, [, count]) => sum + count, 0);
    this.part(".drops").classList.toggle("some", total > 0);
    this.part(".drops b").textContent = total;
    this.part(".drops").title = counted.map(([reason, count]) => `${reason}: ${count}`).join("\n");
    const rows = counted.length ? counted : [["nothing was dropped", ""]];
    this.part(".drops ul").replaceChildren(...rows.map(([reason, count]) => element("li", "", `${reason} ${count}`)));
  }

  showLegend() {
    const seen = this.share ?? [];
    const all = this.allClasses || this.root.classList.contains("full");
    const rows = all ? seen : seen.slice(0, LEGEND_ROWS);
    const classes = this.page.classesOf(this.bundle);
    this.part(".legend").replaceChildren(...rows.map(([name, share]) => this.legendRow(name, share, classes)));
    const more = this.part(".more");
    more.hidden = seen.length <= LEGEND_ROWS || (all && !this.allClasses);
    more.textContent = this.allClasses ? "fewer classes" : `${seen.length - LEGEND_ROWS} more classes`;
    more.setAttribute("aria-expanded", this.allClasses);
  }

  // A camera without masks tells its age and bundle by its labels. They come with every frame; tick shows them.
  takeLabels(labels) {
    this.arrive();
    this.labels = labels;
    if (!this.images.mask) [this.bundle, this.captured] = [labels.bundle, labels.captured_ms];
  }

  showLabels() {
    if (!this.labels) return;
    const present = this.labels.labels.filter(({ score }) => score >= LEAST_SCORE);
    const classes = this.page.classesOf(this.bundle);
    this.part(".labels").replaceChildren(...present.map((label) => this.labelChip(label, classes)));
    this.part(".labels").hidden = !present.length;
    this.labels = null;
  }

  labelChip({ name, score }, classes) {
    return this.chip("li", name, score, classes);
  }

  zoneRow(name, seen) {
    const row = element("li", "zoning");
    const classes = this.page.classesOf(this.bundle);
    row.append(element("b", "", name), ...seen.flatMap((each) => [" ", this.chip("span", ...each, classes)]));
    return row;
  }

  chip(tag, name, share, classes) {
    const chip = element(tag, "label", `${name} `);
    chip.prepend(this.swatch(name, classes));
    chip.append(element("small", "", percent(share)));
    return chip;
  }

  swatch(name, classes) {
    const made = element("i", "swatch");
    const [red, green, blue] = classes.find((known) => known.name === name)?.colour ?? [128, 128, 128];
    made.style.background = `rgb(${red} ${green} ${blue})`;
    return made;
  }

  legendRow(name, share, classes) {
    const row = element("li", "class");
    const swatch = this.swatch(name, classes);
    const bar = element("span", "share");
    bar.style.setProperty("--share", share);
    bar.style.setProperty("--colour", swatch.style.background);
    row.append(swatch, element("span", "", name), bar, element("span", "percent", percent(share)));
    return row;
  }

  // Once in a while: the picture grows older even when nothing arrives.
  tick() {
    this.showLabels();
    this.curve.tick(this.page.now());
    this.grid.tick();
    this.showWaiting();
    if (this.counted && Date.now() - this.counted > SILENT_MS) this.showNumbers({});
    const age = this.part(".age");
    if (!this.captured) return;
    const ms = Math.max(0, this.page.now() - this.captured);
    age.textContent = ageText(ms);
    age.dataset.stale = ms > STALE_MS.old ? "old" : ms > STALE_MS.late ? "late" : "fresh";
  }
}
