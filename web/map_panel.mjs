// Panel of CLEAR Attention Map: both maps of the last run. A click on one moves the query of the next run.

import { imageAddress } from "./api.mjs";
import { fromLink, html, svg } from "./dom.mjs";
import { changeGraph, valueOf } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { GAP, PADDING, measured } from "./measured.mjs";
import { growToFit } from "./node_panel.mjs";
import { mapOf } from "./run_images.mjs";

/** @typedef {import("./types").Node} Node */
/** @typedef {import("./types").MapPicture} MapPicture */

const MAPS_HEIGHT = 270;
const MARK = 0.05; // radius of the mark, in widths of a map; around a larger token it is larger

/** @type {Record<string, [rows: number, columns: number]>} */
const KEYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/**
 * @param {Node} node
 * @returns {import("./types").Panel}
 */
export function mapPanel(node) {
    const maps = html("div", { class: "clear-maps", role: "slider", tabindex: 0, "aria-label": t("Query of the next run") });
    const note = html("p", { class: "clear-note", role: "status" });
    const whole = html("a", { target: "_blank" }, t("Open the whole picture"));
    const foot = html("div", { class: "clear-maps-foot" }, note, whole);
    const element = html("div", { class: "clear-panel" }, maps, foot);
    const footHeight = measured(node, foot);
    /** @type {MapPicture | undefined} */
    let picture;
    maps.hidden = whole.hidden = true;
    let shown = "null";
    /** Of each map: moves its mark to a row and column. @type {((row: number, column: number) => void)[]} */
    let marks = [];

    function draw() {
        marks = [];
        maps.hidden = whole.hidden = !picture;
        maps.replaceChildren();
        if (!picture) return;
        const address = imageAddress(picture);
        whole.href = address;
        for (const map of picture.maps) {
            const { figure, move } = mapFigure(picture, map, address, moveTo, () => {
                note.textContent = t("The server no longer has this picture: run it again.");
            });
            maps.append(figure);
            marks.push(move);
        }
        growToFit(node);
    }

    /** @param {number} row @param {number} column */
    function moveTo(row, column) {
        if (!picture || linkedInput(node)) return;
        const [rows, columns] = picture.grid;
        const [y, x] = [shareOf(clamped(row, rows), rows), shareOf(clamped(column, columns), columns)];
        if (valueOf(node, "x") === x && valueOf(node, "y") === y) return;
        changeGraph(() => {
            setValue(node, "x", x);
            setValue(node, "y", y);
        });
        refresh();
    }

    function refresh() {
        const found = mapOf(node);
        const wanted = JSON.stringify(found ?? null);
        if (wanted !== shown) {
            shown = wanted;
            picture = found;
            draw();
        }
        if (!picture) {
            note.textContent = t("Run it to see the maps here. A click on a map then moves the query.");
            return;
        }
        const linked = linkedInput(node);
        const next = queryOf(node, picture);
        maps.setAttribute("aria-disabled", String(Boolean(linked)));
        for (const move of marks) move(...(next ?? [NaN, NaN]));
        if (next) {
            const [rows, columns] = picture.grid;
            const place = t("row $row, column $column", { row: next[0], column: next[1] });
            maps.setAttribute("aria-valuemin", "0");
            maps.setAttribute("aria-valuemax", String(rows * columns - 1));
            maps.setAttribute("aria-valuenow", String(next[0] * columns + next[1]));
            maps.setAttribute("aria-valuetext", place);
            const moved = next.some((at, i) => at !== picture?.query[i]);
            note.textContent = moved
                ? t("The query of the next run is at $place (green ring).", { place })
                : t("Click a map to move the query.");
        }
        if (linked) note.textContent = linkedNote(linked, next !== undefined);
    }

    maps.addEventListener("keydown", (event) => {
        const by = KEYS[event.key];
        const at = picture && queryOf(node, picture);
        if (!by || !at || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        event.stopPropagation();
        moveTo(at[0] + by[0], at[1] + by[1]);
    });

    return {
        element,
        height: () => 2 * PADDING + (picture ? MAPS_HEIGHT + GAP : 0) + footHeight(),
        refresh,
    };
}

/**
 * One map, cut out of the picture, with its name and the mark.
 *
 * @param {MapPicture} picture
 * @param {MapPicture["maps"][number]} map
 * @param {string} address
 * @param {(row: number, column: number) => void} pressed
 * @param {() => void} failed
 */
function mapFigure({ size: [width, height], grid }, { name, place }, address, pressed, failed) {
    const [rows, columns] = grid;
    const image = svg("image", { href: address, width, height });
    image.addEventListener("error", failed);
    const ring = ["clear-mark-edge", "clear-mark"].map((kind) => svg("circle", { class: kind }));
    // As large as the map: what is clicked, and by what the click is measured.
    const target = svg("rect", { x: place[0], y: place[1], width: place[2], height: place[3], fill: "transparent" });
    const [x, y, across, down] = place;
    // An inner one cuts the picture off at the map's border; the outer one leaves free what is wider than the map.
    const cut = svg("svg", { x, y, width: across, height: down, viewBox: place.join(" "), class: "clear-cut" }, image);
    const drawing = svg("svg", { viewBox: place.join(" "), "aria-hidden": "true" }, cut, ...ring, target);
    drawing.addEventListener("pointerdown", (event) => {
        if (/** @type {PointerEvent} */ (event).button === 0) event.stopPropagation(); // Nodes 2.0 would move the node
    });
    target.addEventListener("click", (event) => {
        const { clientX, clientY } = /** @type {MouseEvent} */ (event);
        const box = target.getBoundingClientRect(); // as shown: the canvas may be zoomed
        pressed(tokenAt((clientY - box.top) / box.height, rows), tokenAt((clientX - box.left) / box.width, columns));
    });
    const radius = Math.max(MARK, 0.75 / columns) * across;
    return {
        figure: html("figure", {}, html("figcaption", { title: name }, name), drawing),
        /** @param {number} row @param {number} column NaN where it is not known */
        move(row, column) {
            for (const circle of ring) {
                circle.setAttribute("visibility", Number.isNaN(row) ? "hidden" : "visible");
                if (Number.isNaN(row)) continue;
                circle.setAttribute("cx", String(place[0] + ((column + 0.5) / columns) * place[2]));
                circle.setAttribute("cy", String(place[1] + ((row + 0.5) / rows) * place[3]));
                circle.setAttribute("r", String(radius));
            }
        },
    };
}

/**
 * The row and column of the next run; undefined where a link gives them when the prompt runs.
 *
 * @param {Node} node
 * @param {MapPicture} picture
 * @returns {[row: number, column: number] | undefined}
 */
function queryOf(node, { grid: [rows, columns] }) {
    const [x, y] = [valueOf(node, "x"), valueOf(node, "y")];
    if (typeof x !== "number" || typeof y !== "number") return undefined;
    return [tokenAt(y, rows), tokenAt(x, columns)];
}

/** The token of a share of the image's side, as the server takes it. @param {number} share @param {number} count */
function tokenAt(share, count) {
    return clamped(Math.floor(share * count), count);
}

/** The middle of a token. @param {number} token @param {number} count */
function shareOf(token, count) {
    return Number(((token + 0.5) / count).toFixed(4));
}

/** @param {number} token @param {number} count */
function clamped(token, count) {
    return Math.min(count - 1, Math.max(0, token));
}

/** @param {Node} node */
function linkedInput(node) {
    return node.inputs.find(({ name, link }) => ["x", "y"].includes(name) && link != null)?.name;
}

/** @param {string} name @param {boolean} known */
function linkedNote(name, known) {
    return known ? t("$name comes from a link: change it there.", { name }) : fromLink(name);
}

/** @param {Node} node @param {string} name @param {number} value */
function setValue(node, name, value) {
    const widget = node.widgets?.find((other) => other.name === name);
    if (!widget) return;
    widget.callback?.(value);
    widget.value = value; // the page's callback rounds to two decimals: more than a token of a large image
}
