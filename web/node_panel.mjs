// Adds a panel below a node's widgets, in either renderer, and removes it.

import { app } from "../../scripts/app.js";
import { html } from "./dom.mjs";

/** @typedef {import("./types").Panel} Panel */

const WIDGET = "clear_picture";
const PAGE_TEXT = "$$node-text-preview"; // the widget with which the page shows a run's text
const MARGIN = 8;

/**
 * @param {import("./types").Node} node
 * @param {Panel} panel
 */
export function addPanel(node, panel) {
    loadStyle();
    removePageText(node);
    if (!panel.compact) panel.element.classList.add("widget-expands"); // Nodes 2.0: fills the height that is left
    for (const kind of ["pointerdown", "keydown", "wheel"]) {
        panel.element.addEventListener(kind, forwardToCanvas, { passive: false });
    }
    const widget = /** @type {import("./types").FullNode} */ (node).addDOMWidget(WIDGET, "clear", panel.element, {
        serialize: false, // not in prompts
        margin: MARGIN,
        hideOnZoom: false,
        getMinHeight: () => panel.height() + 2 * MARGIN,
        getMaxHeight: () => (panel.compact ? panel.height() + 2 * MARGIN : Infinity),
    });
    widget.serialize = false; // not in workflows
    growToFit(node);
}

/** The text of a run as the page shows it: the panel shows the same. @param {import("./types").Node} node */
export function removePageText(node) {
    const widget = node.widgets?.find((other) => other.name === PAGE_TEXT);
    if (widget) node.removeWidget(widget);
}

/** Enlarge a node to the size that its widgets need. @param {import("./types").Node} node */
export function growToFit(node) {
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.setDirtyCanvas(true, true);
}

/** Panels whose node was announced to Nodes 2.0 again. @type {WeakSet<Panel>} */
const announced = new WeakSet();

/**
 * Show a panel that Nodes 2.0 does not. When undo or another workflow replaces a node by one with the same id, it keeps
 * showing the panel of the old node. Once a link of a node has changed, it no longer reads the node's widgets (page
 * 1.32.9), and a widget that comes later is not shown until the node is announced again.
 *
 * @param {import("./types").Node} node
 * @param {Panel} panel
 */
export function reattachPanel(node, panel) {
    if (panel.element.isConnected || node.graph !== app.canvas.graph || node.flags?.collapsed) return;
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
    if (!drawn) return;
    const old = drawn.querySelector(".clear-panel");
    if (old) {
        old.replaceWith(panel.element);
    } else if (!announced.has(panel)) {
        announced.add(panel);
        node.graph?.onNodeAdded?.(node);
    }
}

/** @param {import("./types").Node} node */
export function removePanel(node) {
    const widget = node.widgets?.find((other) => other.name === WIDGET);
    if (!widget) return;
    node.removeWidget(widget);
    node.setSize([node.size[0], node.size[1] - (widget.computedHeight ?? 0)]);
}

/**
 * The wheel and the middle button on a panel zoom and move the canvas, as anywhere else. Other input on a control
 * belongs to that control: Delete in a list must not delete the node.
 *
 * @param {Event} event
 */
function forwardToCanvas(event) {
    const on = /** @type {Element} */ (event.target);
    const canvas = app.canvas.canvas;
    if (event instanceof WheelEvent) {
        event.preventDefault();
        event.stopPropagation();
        canvas.dispatchEvent(new WheelEvent(event.type, event));
    } else if (on.closest("select, button, a, [role=slider]")) {
        // Undo, queue and other shortcuts still reach the page.
        if (!(event instanceof KeyboardEvent && (event.ctrlKey || event.metaKey))) event.stopPropagation();
    } else if (event instanceof PointerEvent && event.button === 1 && on.closest(".dom-widget")) {
        // In the classic renderer the panel lies over the canvas; in the other one it is part of the node.
        canvas.dispatchEvent(new PointerEvent(event.type, event));
    }
}

/** The pack's style sheet, once, and only if there is a panel. */
function loadStyle() {
    const href = new URL("./clear.css", import.meta.url).href;
    if (document.querySelector(`link[href="${href}"]`)) return;
    document.head.append(html("link", { rel: "stylesheet", href }));
}
