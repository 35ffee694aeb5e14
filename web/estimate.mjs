// What a run would take, on a panel: seconds, memory with weights, RAM and disk; red where it does not fit, with a button
// that sets what does. All figures come from the server.

import { api } from "../../scripts/api.js";
import { latestRequest, request } from "./api.mjs";
import { duration, gib, html } from "./dom.mjs";
import { t } from "./i18n.mjs";
import { GAP, measured } from "./measured.mjs";
import { bandedNode, changeBands, hasBands, insertMultiGpu, modelFile, steps } from "./run_plan.mjs";
import { clearSettings, valueOf } from "./graph.mjs";

/** @typedef {import("./types").EstimatePayload} EstimatePayload */
/** @typedef {[name: string, value: string, rest: string, title: string, wrong?: boolean]} Row */

const MEASURED = "clear_attention.measured"; // tells every panel of the page

/** @param {import("./types").Node} node */
export function estimate(node) {
    const rows = html("div", { class: "clear-estimate-rows", "aria-live": "polite" });
    const buttons = html("div", { class: "clear-estimate-buttons" });
    const said = html("p", { class: "clear-estimate-said", role: "status", hidden: "" });
    const element = html("div", { class: "clear-estimate" }, rows, said, buttons);
    const height = measured(node, element);
    /** @type {Record<string, unknown>} */
    let wanted = {};
    let measuring = false;

    /** @type {ReturnType<typeof latestRequest<EstimatePayload>>} */
    const requestEstimate = latestRequest("estimate", show);

    /** @param {EstimatePayload | import("./types").Refused} payload */
    function show(payload) {
        // What is wrong with the settings stands above already.
        const found = payload.refused === undefined ? payload : undefined;
        rows.replaceChildren(...(found ? figures(found) : []).map(line));
        buttons.replaceChildren(...(found ? [...repair(node, found), ...measureButton(found)] : []));
    }

    /** @param {EstimatePayload} payload */
    function measureButton({ seconds, backend }) {
        if (seconds?.own || backend) return [];
        const title = t("Times one double and one single block of this model here: some 30 seconds.");
        const button = html("button", { type: "button", title }, t("Measure now"));
        button.disabled = measuring;
        button.addEventListener("click", () => void measure());
        return [button];
    }

    /** @param {string} text */
    function say(text) {
        said.textContent = text;
        said.hidden = !text;
    }

    async function measure() {
        const { width, height, devices, bands, banded, steps: count, ...values } = wanted;
        setMeasuring(true, 0);
        const answer = /** @type {{ refused?: string }} */ (await request("measure", values, "POST"));
        setMeasuring(false);
        say(answer.refused ?? "");
        if (answer.refused === undefined) window.dispatchEvent(new Event(MEASURED));
    }

    /** @param {boolean} on @param {number} [share] */
    function setMeasuring(on, share = 0) {
        measuring = on;
        for (const button of buttons.querySelectorAll("button")) button.disabled = on;
        say(on ? t("Measuring: $percent %", { percent: Math.round(100 * share) }) : "");
    }

    /** @type {EventTarget} */ (api).addEventListener("clear_attention.measure", (event) => {
        if (measuring) setMeasuring(true, /** @type {CustomEvent<{ share: number }>} */ (event).detail.share);
    });
    window.addEventListener(MEASURED, () => element.isConnected && void requestEstimate(wanted, true));

    return {
        element,
        height: () => height() + GAP,
        /** @param {[width: number, height: number]} size @param {boolean} [again] request even if nothing has changed */
        refresh([width, height], again = false) {
            const settings = clearSettings(node);
            const banded = bandedNode(node);
            const bands = banded && (hasBands(banded) ? valueOf(banded, "bands") : 0);
            const cut = banded ? { banded: 1, devices: valueOf(banded, "devices"), bands } : {};
            /** @type {Record<string, unknown>} */
            const values = { width, height, ...settings, ...cut, ...modelFile(node), steps: steps(node) };
            if (!settings || Object.values(values).includes(undefined)) {
                rows.replaceChildren();
                buttons.replaceChildren();
                return;
            }
            wanted = values;
            void requestEstimate(values, again);
        },
    };
}

/** @param {Row} row */
function line([name, value, rest, title, wrong = false]) {
    const parts = [html("span", {}, name), html("b", {}, value), html("span", {}, rest)];
    return html("div", { class: wrong ? "clear-wrong" : "", title }, ...parts);
}

/** @param {EstimatePayload} payload @returns {Row[]} */
function figures({ backend, seconds, bands, memory, ram, disk }) {
    /** @type {Row[]} */
    const found = [];
    if (backend) found.push([t("backend"), backend.name, t("cannot run this: choose auto"), backend.refusal, true]);
    if (seconds) {
        const all = seconds.all === null ? "" : t("$count steps: $time", { count: seconds.steps, time: duration(seconds.all) });
        found.push([t("one step"), duration(seconds.step), all, source(seconds)]);
    }
    const weights = t("Weights $weights, one step $step; $free of $total free now.", {
        weights: gib(memory.weights),
        step: gib(memory.step),
        free: gib(memory.free),
        total: gib(memory.total),
    });
    const where = t("with weights, $free of $total free", { free: gib(memory.free), total: gib(memory.total) });
    const name = memory.device === "cpu" ? t("RAM") : t("memory of $device", { device: memory.device });
    found.push([name, gib(memory.need), memory.missing ? tooMuch(memory) : where, weights, memory.missing > 0]);
    if (ram) {
        const title = t("Weights pass through RAM when they are loaded.");
        const free = t("$free free", { free: gib(ram.free) });
        found.push([t("RAM"), gib(ram.need), ram.missing ? t("does not fit: $free", { free }) : free, title, ram.missing]);
    }
    if (disk) {
        const short = disk.need > disk.free;
        const free = t("$free free", { free: gib(disk.free) });
        const title = t("CLEAR weights that are downloaded when the prompt runs.");
        found.push([t("download"), gib(disk.need), short ? t("does not fit: $free", { free }) : free, title, short]);
    }
    if (bands > 1) found[seconds ? 1 : 0][3] += ` ${t("In $bands bands.", { bands })}`;
    return found;
}

/** @param {EstimatePayload["memory"]} memory */
function tooMuch({ missing, offloaded, total }) {
    const size = { size: gib(missing), total: gib(total) };
    return offloaded
        ? t("does not fit: $size of the weights cross in each step, which is slow", size)
        : t("does not fit: $size too much for $total", size);
}

/** @param {NonNullable<EstimatePayload["seconds"]>} seconds */
function source({ source: from, beyond, untimed, own }) {
    const parts = [own ? t("By this device's own measurement.") : t("Predicted $from.", { from })];
    if (beyond) parts.push(t("It is larger than what was measured."));
    if (untimed) parts.push(t("Transfers of weights that do not fit are left out."));
    return [...parts, t("One image at CFG 1, without text encoder and VAE.")].join(" ");
}

/**
 * Buttons that make it fit, or words where none does.
 *
 * @param {import("./types").Node} node
 * @param {EstimatePayload} payload
 * @returns {HTMLElement[]}
 */
function repair(node, { fix }) {
    if (!fix) return [];
    const banded = bandedNode(node);
    const bands = fix.bands ?? 0;
    if (fix.kind === "bands" && banded && !hasBands(banded)) {
        return [html("p", {}, t("It fits in $bands bands: expand this node and set them.", { bands }))];
    }
    if (fix.kind === "bands") {
        const text = bands ? t("Set bands to $bands", { bands }) : t("Set bands to 0 (auto)");
        const button = html("button", { type: "button" }, banded ? text : t("Insert CLEAR Multi-GPU"));
        button.addEventListener("click", () => {
            button.disabled = true; // the graph is read again when the change is done
            if (banded) changeBands(banded, bands);
            else insertMultiGpu(node, bands);
        });
        return [button];
    }
    const advice = {
        fp8: t("It fits with fp8 weights: set weight_dtype to fp8_e4m3fn in Load Diffusion Model."),
        "fp8 and bands": t("It fits with fp8 weights (weight_dtype fp8_e4m3fn) and CLEAR Multi-GPU."),
        none: t("Choose a smaller image, or a device with more memory."),
    };
    return [html("p", {}, advice[fix.kind])];
}
