// Two images over each other: the first is seen left of a divider, the second right of it. Both zoom and move together.

import { html } from "./dom.mjs";
import { t } from "./i18n.mjs";

const MOST_ZOOM = 16;
const ZOOM_STEP = 1.25;
const GRIP = 14; // pixels on either side of the divider, where a drag takes it rather than the images

/** @typedef {import("./types").SliderPair} SliderPair */

/**
 * A slider without images; `show` gives it some, and shows the first pair. Arrow keys, Page up and down, Home and End
 * move the divider, S swaps the images, + - 0 zoom, Shift and an arrow move the zoomed images. The wheel zooms once the
 * slider has the focus; before, it belongs to the page.
 */
export function imageSlider() {
    const layers = ["before", "after"].map((name) => {
        const image = html("img", { alt: "", draggable: "false" });
        const label = html("span");
        return { image, label, element: html("div", { class: `clear-slider-${name}` }, image, label) };
    });
    const view = html(
        "div",
        { class: "clear-slider-view", role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": 100 },
        ...layers.map((layer) => layer.element),
        html("div", { class: "clear-slider-divider" }),
    );
    const lost = html("p", { role: "status" });
    const previous = button("‹", t("Previous images"), () => step(-1));
    const next = button("›", t("Next images"), () => step(1));
    const place = html("span", { "aria-live": "polite" });
    const swap = button("⇄", t("Swap the images (S)"), swapImages);
    const out = button("−", t("Zoom out (-)"), () => zoomBy(1 / ZOOM_STEP));
    const fit = button("1x", t("Whole image (0)"), () => zoomBy(0));
    const closer = button("+", t("Zoom in (+)"), () => zoomBy(ZOOM_STEP));
    const bar = html("div", { class: "clear-slider-bar" }, previous, place, next, swap, out, fit, closer);
    const element = html("div", { class: "clear-slider" }, view, lost, bar);
    element.hidden = true;

    /** @type {SliderPair[]} */
    let pairs = [];
    /** @type {[string, string]} */
    let labels = ["", ""];
    let index = 0;
    let swapped = false;
    let split = 50; // per cent of the width
    let zoom = 1;
    let [x, y] = [0, 0]; // where the images' upper left corner lies, in widths and heights of the view

    function render() {
        const [left, right] = swapped ? [labels[1], labels[0]] : labels;
        layers[0].label.textContent = left;
        layers[1].label.textContent = right;
        view.style.setProperty("--clear-split", `${split}%`);
        view.setAttribute("aria-valuenow", String(Math.round(split)));
        view.setAttribute("aria-valuetext", t("$share % $name", { share: Math.round(split), name: left }));
        view.setAttribute("aria-label", t("$before, left of the divider; $after, right of it", { before: left, after: right }));
        for (const { image } of layers) {
            image.style.transform = `translate(${100 * x}%, ${100 * y}%) scale(${zoom})`;
            image.style.imageRendering = zoom > 4 ? "pixelated" : "auto";
        }
        fit.textContent = `${zoom < 10 ? Number(zoom.toFixed(1)) : zoom.toFixed(0)}x`;
        out.disabled = zoom <= 1;
        closer.disabled = zoom >= MOST_ZOOM;
        place.textContent = t("$number of $all", { number: index + 1, all: pairs.length });
        for (const part of [previous, place, next]) part.hidden = pairs.length < 2;
        previous.disabled = index === 0;
        next.disabled = index + 1 >= pairs.length;
    }

    function load() {
        const pair = pairs[index];
        element.hidden = !pair;
        lost.textContent = "";
        if (!pair) return;
        const [left, right] = swapped ? [pair.after, pair.before] : [pair.before, pair.after];
        // The same address again would load nothing, and report no error.
        for (const [layer, source] of /** @type {const} */ ([[layers[0], left], [layers[1], right]])) {
            layer.image.hidden = !source;
            if (source && layer.image.getAttribute("src") !== source) layer.image.src = source;
        }
        render();
    }

    /** @param {number} by */
    function step(by) {
        index = Math.min(pairs.length - 1, Math.max(0, index + by));
        load();
    }

    function swapImages() {
        swapped = !swapped;
        load();
    }

    /** @param {number} to */
    function moveDivider(to) {
        split = Math.min(100, Math.max(0, to));
        render();
    }

    /** @param {number} toX @param {number} toY */
    function moveImages(toX, toY) {
        [x, y] = [toX, toY].map((value) => Math.min(0, Math.max(1 - zoom, value)));
        render();
    }

    /**
     * @param {number} factor 0 for the whole image
     * @param {number} atX the point that stays in place, in widths and heights of the view
     * @param {number} atY
     */
    function zoomBy(factor, atX = 0.5, atY = 0.5) {
        const before = zoom;
        zoom = Math.min(MOST_ZOOM, Math.max(1, zoom * factor));
        moveImages(atX - ((atX - x) * zoom) / before, atY - ((atY - y) * zoom) / before);
    }

    /** A point of the screen, in widths and heights of the view. @param {MouseEvent} event */
    function pointOf(event) {
        const box = view.getBoundingClientRect(); // as shown: the canvas may be zoomed
        return { left: (event.clientX - box.left) / box.width, top: (event.clientY - box.top) / box.height, box };
    }

    view.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        event.stopPropagation(); // Nodes 2.0 would move the node
        view.setPointerCapture(event.pointerId);
        const start = pointOf(event);
        const atDivider = Math.abs(100 * start.left - split) * start.box.width < 100 * GRIP;
        const [fromX, fromY] = [x, y];
        /** @param {PointerEvent} moved */
        const drag = (moved) => {
            const { left, top } = pointOf(moved);
            if (zoom === 1 || atDivider) moveDivider(100 * left);
            else moveImages(fromX + left - start.left, fromY + top - start.top);
        };
        const release = (/** @type {PointerEvent} */ up) => up.stopPropagation();
        const end = () => {
            view.removeEventListener("pointermove", drag);
            view.removeEventListener("pointerup", release);
            view.removeEventListener("lostpointercapture", end);
        };
        view.addEventListener("pointermove", drag);
        view.addEventListener("pointerup", release);
        view.addEventListener("lostpointercapture", end);
        drag(event);
    });

    // Nodes 2.0 takes the wheel before it reaches an element, but for those that ask for it in this way.
    view.addEventListener("focus", () => view.setAttribute("data-capture-wheel", "true"));
    view.addEventListener("blur", () => view.removeAttribute("data-capture-wheel"));
    view.addEventListener(
        "wheel",
        (event) => {
            if (document.activeElement !== view) return;
            event.preventDefault();
            event.stopPropagation();
            const { left, top } = pointOf(event);
            zoomBy(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, left, top);
        },
        { passive: false },
    );

    view.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const action = (event.shiftKey && zoom > 1 && shifted[event.key]) || keys[event.key];
        if (!action) return;
        event.preventDefault();
        event.stopPropagation();
        action();
    });
    /** @type {Record<string, () => void>} */
    const keys = {
        ArrowLeft: () => moveDivider(split - 1),
        ArrowDown: () => moveDivider(split - 1),
        ArrowRight: () => moveDivider(split + 1),
        ArrowUp: () => moveDivider(split + 1),
        PageDown: () => moveDivider(split - 10),
        PageUp: () => moveDivider(split + 10),
        Home: () => moveDivider(0),
        End: () => moveDivider(100),
        s: swapImages,
        S: swapImages,
        "+": () => zoomBy(ZOOM_STEP),
        "=": () => zoomBy(ZOOM_STEP),
        "-": () => zoomBy(1 / ZOOM_STEP),
        0: () => zoomBy(0),
    };
    /** @type {Record<string, () => void>} */
    const shifted = {
        ArrowLeft: () => moveImages(x + 0.1, y),
        ArrowRight: () => moveImages(x - 0.1, y),
        ArrowUp: () => moveImages(x, y + 0.1),
        ArrowDown: () => moveImages(x, y - 0.1),
    };

    for (const { image } of layers) {
        image.addEventListener("error", () => {
            lost.textContent = t("The server no longer has these images: run it again.");
        });
    }

    return {
        element,
        /** @param {SliderPair[]} given @param {[string, string]} names of the first and the second image */
        show(given, names) {
            [pairs, labels, index] = [given, names, 0];
            load();
        },
    };
}

/** @param {string} sign @param {string} name @param {() => void} pressed */
function button(sign, name, pressed) {
    const made = html("button", { type: "button", title: name, "aria-label": name }, sign);
    made.addEventListener("click", pressed);
    return made;
}
