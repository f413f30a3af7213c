// The zones of one camera: their outlines over the picture, and what is in each below it.

const SVG = "http://www.w3.org/2000/svg";
const CLASSES = 3; // of a zone that are named, the largest

// The highest corner, the leftmost of several: where the outline's name stands.
const highest = (corners) => corners.reduce((top, one) => (one[1] < top[1] || (one[1] === top[1] && one[0] < top[0]) ? one : top));

export class Zones {
  constructor(outlines, list) {
    this.outlines = outlines; // over the picture
    this.list = list;
    this.told = "";
  }

  // zones: {name: [[x, y], ...]}, fractions of the picture's width and height
  show(zones) {
    const told = JSON.stringify(zones ?? {});
    if (told === this.told) return;
    this.told = told;
    const named = Object.entries(zones ?? {});
    const drawing = document.createElementNS(SVG, "svg");
    drawing.setAttribute("viewBox", "0 0 1 1");
    drawing.setAttribute("preserveAspectRatio", "none");
    for (const [, corners] of named) {
      // Over pictures of any colour: a light line in a dark one.
      for (const className of ["under", "line"]) {
        const polygon = document.createElementNS(SVG, "polygon");
        polygon.setAttribute("class", className);
        polygon.setAttribute("points", corners.map((corner) => corner.join(",")).join(" "));
        drawing.append(polygon);
      }
    }
    this.outlines.replaceChildren(drawing, ...named.map(([name, corners]) => this.nameAt(name, highest(corners))));
  }

  nameAt(name, [x, y]) {
    const label = document.createElement("span");
    label.className = "zone";
    label.textContent = name;
    label.style.left = `${x * 100}%`;
    label.style.top = `${y * 100}%`;
    label.classList.toggle("leftwards", x > 0.6);
    return label;
  }

  // shares: {name: {class: share}}; row makes what tells of one zone, its classes the largest first
  tell(shares, row) {
    const rows = Object.entries(shares ?? {}).map(([name, share]) => {
      const seen = Object.entries(share).filter(([, part]) => part >= 0.005);
      return row(name, seen.sort((a, b) => b[1] - a[1]).slice(0, CLASSES));
    });
    this.list.replaceChildren(...rows);
    this.list.hidden = !rows.length;
  }
}
