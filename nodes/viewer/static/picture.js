// Pictures of the live feed: what is in a message, and which class a colour of a mask stands for.

// A binary message is u32 header length (network order), JSON header, PNG or JPEG.
export function readPicture(buffer) {
  const size = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  return { ...header, bytes: new Uint8Array(buffer, 4 + size) };
}

export function decode(picture) {
  const type = picture.type === "mask" ? "image/png" : "image/jpeg";
  // A mask's colours must reach the canvas as they are, since they are looked up again.
  return createImageBitmap(new Blob([picture.bytes], { type }), {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
}

export const colourKey = (red, green, blue) => (red << 16) | (green << 8) | blue;

// The PNG's own palette: colour key -> class index.
export function readPalette(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const classes = new Map();
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (view.getUint32(at + 4) !== 0x504c5445) continue; // "PLTE"
    const colours = bytes.subarray(at + 8, at + 8 + view.getUint32(at));
    for (let index = 0; index * 3 + 2 < colours.length; index++) {
      const key = colourKey(colours[index * 3], colours[index * 3 + 1], colours[index * 3 + 2]);
      if (!classes.has(key)) classes.set(key, index);
    }
    break;
  }
  return classes;
}

// One picture is decoded at a time; of those that come meanwhile only the newest is kept.
export class NewestPicture {
  constructor(show) {
    this.show = show;
    this.next = null;
    this.busy = false;
  }

  async take(picture) {
    this.next = picture;
    if (this.busy) return;
    this.busy = true;
    while (this.next) {
      const current = this.next;
      this.next = null;
      try {
        this.show(await decode(current), current);
      } catch (error) {
        console.warn(`${current.camera}: this ${current.type} cannot be decoded`, error);
      }
    }
    this.busy = false;
  }
}
