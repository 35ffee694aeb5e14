// Puts a panel under a node's widgets, in either renderer, and takes it away.

import { app } from "../../scripts/app.js";
import { html } from "./dom.mjs";

/** @typedef {import("./types").Panel} Panel */

const WIDGET = "clear_picture";
const MARGIN = 8;

/**
 * @param {import("./types").Node} node
 * @param {Panel} panel
 */
export function dress(node, panel) {
    loadStyle();
    panel.element.classList.add("widget-expands"); // Nodes 2.0: takes what height the node has left
    for (const kind of ["pointerdown", "keydown", "wheel"]) {
        panel.element.addEventListener(kind, passOn, { passive: false });
    }
    const widget = /** @type {import("./types").FullNode} */ (node).addDOMWidget(WIDGET, "clear", panel.element, {
        serialize: false, // not in prompts
        margin: MARGIN,
        hideOnZoom: false,
        getMinHeight: () => panel.height() + 2 * MARGIN,
    });
    widget.serialize = false; // not in workflows
    grow(node);
}

/** As large as a node's widgets need it. @param {import("./types").Node} node */
export function grow(node) {
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.setDirtyCanvas(true, true);
}

/**
 * Where undo or another workflow puts a node in the place of one with its number, the newer renderer goes on showing
 * the old one's panel.
 *
 * @param {import("./types").Node} node
 * @param {Panel} panel
 */
export function showOwn(node, panel) {
    if (panel.element.isConnected || node.graph !== app.canvas.graph) return;
    document.querySelector(`[data-node-id="${node.id}"] .clear-panel`)?.replaceWith(panel.element);
}

/** @param {import("./types").Node} node */
export function undress(node) {
    const widget = node.widgets?.find((other) => other.name === WIDGET);
    if (!widget) return;
    node.removeWidget(widget);
    node.setSize([node.size[0], node.size[1] - (widget.computedHeight ?? 0)]);
}

/**
 * The wheel and the middle button on a panel zoom and move the canvas, as anywhere else. But what a person does on a
 * control is the control's alone: Delete in a list must not delete the node.
 *
 * @param {Event} event
 */
function passOn(event) {
    const on = /** @type {Element} */ (event.target);
    const canvas = app.canvas.canvas;
    if (event instanceof WheelEvent) {
        event.preventDefault();
        event.stopPropagation();
        canvas.dispatchEvent(new WheelEvent(event.type, event));
    } else if (on.closest("select, button, a")) {
        // Undo, queue and the like still reach the page.
        if (!(event instanceof KeyboardEvent && (event.ctrlKey || event.metaKey))) event.stopPropagation();
    } else if (event instanceof PointerEvent && event.button === 1 && on.closest(".dom-widget")) {
        // In the classic renderer the panel lies over the canvas; in the other one it is part of the node.
        canvas.dispatchEvent(new PointerEvent(event.type, event));
    }
}

/** This pack's colours, once, and only where there is something to colour. */
function loadStyle() {
    const href = new URL("./clear.css", import.meta.url).href;
    if (document.querySelector(`link[href="${href}"]`)) return;
    document.head.append(html("link", { rel: "stylesheet", href }));
}
