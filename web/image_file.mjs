// The size of the image that a Load Image node names.

import { api } from "../../scripts/api.js";

const MOST = 50; // files

/** By the image's address; undefined until the browser has read it. @type {Map<string, [number, number] | undefined>} */
const sizes = new Map();

/** Tells that a size has been read. */
export const sizeRead = new EventTarget();

/**
 * In pixels. The page's own picture of the file is not always there: it draws nodes in view only.
 *
 * @param {import("./types").Node} node
 * @returns {[width: number, height: number] | undefined}
 */
export function fileSize(node) {
    const shown = /** @type {import("./types").FullNode} */ (node).imgs?.[0];
    const named = String(node.widgets?.find((widget) => widget.name === "image")?.value ?? "");
    const [, path, type = "input"] = /^(.*?)(?: \[(input|output|temp)\])?$/.exec(named) ?? [];
    if (!path) return undefined;
    const slash = path.lastIndexOf("/");
    const values = { filename: path.slice(slash + 1), subfolder: path.slice(0, Math.max(0, slash)), type };
    const address = api.apiURL(`/view?${new URLSearchParams(values)}`);
    if (shown?.naturalWidth && shown.src.includes(encodeURIComponent(values.filename))) {
        return [shown.naturalWidth, shown.naturalHeight];
    }
    if (!sizes.has(address)) read(address);
    return sizes.get(address);
}

/** @param {string} address */
function read(address) {
    sizes.set(address, undefined);
    for (const oldest of [...sizes.keys()].slice(0, -MOST)) sizes.delete(oldest);
    const image = new Image();
    image.addEventListener("load", () => {
        sizes.set(address, [image.naturalWidth, image.naturalHeight]);
        sizeRead.dispatchEvent(new Event("read"));
    });
    image.src = address;
}
