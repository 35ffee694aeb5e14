// The devices of this machine as boxes to tick. What is stored stays the text in the node's widget "devices".

import { gib, html } from "./dom.mjs";
import { changeGraph } from "./graph.mjs";
import { say } from "./words.mjs";

const AUTO = "auto";

/** The parts of a value of "devices", such as cuda:0=2; none for auto. @param {string} text */
function entries(text) {
    const found = text.split(",").map((part) => part.trim()).filter(Boolean);
    return found.length === 1 && found[0].toLowerCase() === AUTO ? [] : found;
}

/** @param {string} entry */
function nameOf(entry) {
    const name = entry.split("=")[0].trim().toLowerCase();
    return /^(cuda|xpu|mps)$/.test(name) ? `${name}:0` : name;
}

/** @param {import("./types").Node} node */
export function devicePicker(node) {
    const element = html("fieldset", { class: "clear-devices", "aria-label": say("Devices") });
    const widget = node.widgets?.find((other) => other.name === "devices");
    /** @type {string[]} */
    let names = [];

    const chosen = () => entries(String(widget?.value ?? ""));

    /** @param {string} name */
    function press(name) {
        if (!widget) return;
        const had = chosen();
        const rest = had.filter((entry) => nameOf(entry) !== name);
        const place = (/** @type {string} */ entry) => names.indexOf(nameOf(entry));
        if (name !== AUTO && rest.length === had.length) rest.push(name);
        const next = name === AUTO ? [] : rest.sort((a, b) => place(a) - place(b));
        changeGraph(() => {
            widget.value = next.join(",") || AUTO;
            widget.callback?.(widget.value);
        });
    }

    /**
     * Show the machine as it is. Rows that stay are changed in place, so that none is swapped under a person's finger.
     *
     * @param {import("./types").Device[]} machine
     * @param {Record<string, number>} peaks predicted bytes by device
     */
    function update(machine, peaks) {
        const ticked = new Set(chosen().map(nameOf));
        const here = new Map(machine.map((device) => [device.name, device]));
        const wanted = machine.length ? [AUTO, ...new Set([...here.keys(), ...ticked])] : [];
        if (wanted.join() !== names.join()) {
            names = wanted;
            element.replaceChildren(...names.map((name) => row(name, () => press(name))));
        }
        const linked = node.inputs.some((input) => input.name === "devices" && input.link != null);
        names.forEach((name, i) => {
            const button = /** @type {HTMLButtonElement} */ (element.children[i]);
            const device = here.get(name);
            button.disabled = linked;
            button.ariaChecked = String(name === AUTO ? !ticked.size : ticked.has(name));
            const all = machine.length > 2 ? say("all GPUs") : machine[0].title;
            const text = name === AUTO ? all : about(device, peaks[name]);
            button.children[1].textContent = button.title = text;
        });
    }

    return { element, update };
}

/**
 * A button, because the page takes no undo from a person who is in an input.
 *
 * @param {string} name
 * @param {() => void} press
 */
function row(name, press) {
    const attributes = { type: "button", role: "checkbox", "data-device": name };
    const button = html("button", attributes, html("b", {}, name), html("span"));
    button.addEventListener("click", press);
    return button;
}

/** @param {import("./types").Device | undefined} device @param {number | undefined} peak */
function about(device, peak) {
    if (!device) return say("not in this machine");
    const { name, title, free, total } = device;
    const need = peak ? say("$size needed", { size: gib(peak) }) : "";
    // The name comes last: what is too long for the node is cut.
    const parts = [need, say("$free of $total free", { free: gib(free), total: gib(total) }), title === name ? "" : title];
    return parts.filter(Boolean).join(", ");
}
