// The devices of this machine as check boxes. What is stored stays the text in the node's widget "devices"; the server
// says which device each of its entries names.

import { latestRequest } from "./api.mjs";
import { gib, html } from "./dom.mjs";
import { changeGraph } from "./graph.mjs";
import { t } from "./i18n.mjs";

/** @typedef {import("./types").DevicesPayload} DevicesPayload */

const AUTO = "auto"; // the box, and the text that it writes

/**
 * @param {import("./types").Node} node
 * @param {() => void} answered called when the devices are known, which may add rows
 */
export function devicePicker(node, answered) {
    const element = html("fieldset", { class: "clear-devices", "aria-label": t("Devices") });
    const widget = node.widgets?.find((other) => other.name === "devices");
    /** @type {DevicesPayload} */
    let known = { machine: [], auto: [], entries: [] };
    /** @type {Record<string, number>} */
    let peaks = {};
    /** @type {string[]} */
    let names = []; // of the rows: auto, this machine's devices, further ones that are named

    /** @type {ReturnType<typeof latestRequest<DevicesPayload>>} */
    const requestDevices = latestRequest("devices", (payload) => {
        if (payload.refused !== undefined) return;
        known = payload;
        show();
        answered();
    });

    /** @param {string} name */
    function press(name) {
        if (!widget) return;
        const others = known.entries.filter((entry) => entry.device !== name);
        const added = name !== AUTO && others.length === known.entries.length ? [{ text: name, device: name }] : [];
        const row = (/** @type {{ device: string }} */ entry) => names.indexOf(entry.device);
        known.entries = name === AUTO ? [] : [...others, ...added].sort((a, b) => row(a) - row(b));
        changeGraph(() => {
            widget.value = known.entries.map((entry) => entry.text).join(",") || AUTO;
            widget.callback?.(widget.value);
        });
        show();
    }

    /** Rows that stay are changed in place, so that none moves while it is being clicked. */
    function show() {
        const ticked = new Set(known.entries.map((entry) => entry.device));
        const here = new Map(known.machine.map((device) => [device.name, device]));
        const wanted = here.size ? [AUTO, ...new Set([...here.keys(), ...ticked])] : [];
        if (wanted.join() !== names.join()) {
            names = wanted;
            element.replaceChildren(...names.map((name) => row(name, () => press(name))));
        }
        const linked = node.inputs.some((input) => input.name === "devices" && input.link != null);
        const all = known.auto.length > 1 ? t("all GPUs") : here.get(known.auto[0])?.title ?? "";
        names.forEach((name, i) => {
            const button = /** @type {HTMLButtonElement} */ (element.children[i]);
            button.disabled = linked;
            button.ariaChecked = String(name === AUTO ? !ticked.size : ticked.has(name));
            const text = name === AUTO ? all : description(here.get(name), peaks[name]);
            button.children[1].textContent = button.title = text;
            button.classList.toggle("clear-too-much", (peaks[name] ?? 0) > (here.get(name)?.free ?? Infinity));
        });
    }

    return {
        element,
        /** The widget may have changed; with `again`, memory and devices too. @param {boolean} again */
        refresh(again) {
            show();
            void requestDevices({ devices: String(widget?.value ?? AUTO) }, again);
        },
        /** @param {Record<string, number>} needed predicted bytes by device */
        showPeaks(needed) {
            peaks = needed;
            show();
        },
    };
}

/**
 * A button, because the page ignores undo while the focus is in an input.
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

/** @param {import("./types").MachineDevice | undefined} device @param {number | undefined} peak */
function description(device, peak) {
    if (!device) return t("not in this machine");
    const { name, title, free, total } = device;
    const need = peak ? t("$size for a step", { size: gib(peak) }) : "";
    // The title comes last: what is too long for the node is cut off.
    const parts = [need, t("$free of $total free", { free: gib(free), total: gib(total) }), title === name ? "" : title];
    return parts.filter(Boolean).join(", ");
}
