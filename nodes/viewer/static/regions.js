// How each region of a picture was coded, over the picture: one cell per region, a flash where a KEY came.

const KINDS = { K: "key", W: "flow", "-": "unchanged" };
const STEP_MS = 120; // faster than this nobody can read; a KEY among what comes meanwhile still flashes
const FLASH_MS = 600;
const CALM_MS = 700; // no region flashes more often; three times a second can do harm
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class RegionGrid {
  constructor(root) {
    this.root = root;
    this.size = "";
    this.cells = [];
    this.keyed = new Set(); // regions that had a KEY since cells were last changed, also in masks that were passed over
    this.waiting = null;
    this.changed = -Infinity;
  }

  // Take note of a mask that came, `regions` being such as "2x2 KW-D", empty where it is not known.
  note(regions) {
    const [, kinds = ""] = regions.split(" ");
    for (let i = 0; i < kinds.length; i++) if (kinds[i] === "K") this.keyed.add(i);
  }

  // Show what is known of the mask in the picture, now or with a later tick.
  show(regions) {
    this.waiting = regions;
    this.tick();
  }

  tick() {
    const now = performance.now();
    if (this.waiting === null || now - this.changed < STEP_MS) return;
    const [size, kinds = ""] = this.waiting.split(" ");
    if (size !== this.size) this.build(size, kinds.length);
    this.cells.forEach((cell, i) => {
      const before = cell.root.dataset.kind;
      if (before !== KINDS[kinds[i]]) cell.root.dataset.kind = KINDS[kinds[i]];
      if (before && before !== "key" && this.keyed.has(i)) this.flash(cell, now);
    });
    this.keyed.clear();
    this.waiting = null;
    this.changed = now;
  }

  build(size, count) {
    const [rows, columns] = size.split("x");
    this.size = size;
    this.keyed.clear();
    this.root.style.setProperty("--rows", rows || 1);
    this.root.style.setProperty("--columns", columns || 1);
    this.cells = Array.from({ length: count }, () => ({ root: document.createElement("span"), flashed: -Infinity }));
    this.cells.forEach((cell) => (cell.root.className = "region"));
    this.root.replaceChildren(...this.cells.map((cell) => cell.root));
  }

  flash(cell, now) {
    if (still.matches || now - cell.flashed < CALM_MS) return;
    cell.flashed = now;
    cell.root.animate([{ opacity: 1 }, { opacity: 0 }], { duration: FLASH_MS, pseudoElement: "::after" });
  }
}
