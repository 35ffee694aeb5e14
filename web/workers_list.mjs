// The other machines of a node with "machines": who has joined, over which link, with how many rows, and how far each is.

import { latestRequest } from "./api.mjs";
import { html, message } from "./dom.mjs";
import { valueOf } from "./graph.mjs";
import { t } from "./i18n.mjs";

/** @typedef {import("./types").WorkersPayload} WorkersPayload */
/** @typedef {import("./types").BandProgress} BandProgress */

/** @param {import("./types").Node} node */
export function workersList(node) {
    const element = html("section", { class: "clear-workers", "aria-label": t("Other machines") });
    element.hidden = true;
    /** @type {WorkersPayload | undefined} */
    let known;
    /** @type {BandProgress | undefined} */
    let running;
    let address = "";

    /** @type {ReturnType<typeof latestRequest<WorkersPayload>>} */
    const requestWorkers = latestRequest("machines", (payload) => {
        known = payload.refused === undefined ? payload : undefined;
        show(payload.refused);
    });

    /** @param {string} [problem] */
    function show(problem) {
        const workers = known?.workers ?? [];
        if (workers.length) {
            element.replaceChildren(html("ul", {}, ...workers.map((worker) => row(worker, shareOf(running, worker.name)))));
        } else {
            element.replaceChildren(message(problem ?? nobody(known, address)));
        }
    }

    return {
        element,
        /** The widget may have changed; with `again`, the machines too. @param {boolean} again */
        refresh(again) {
            const value = String(valueOf(node, "machines") ?? "").trim();
            [address] = value.split(/\s/);
            element.hidden = !value;
            if (value) void requestWorkers({ machines: value }, again);
        },
        /** @param {BandProgress | undefined} progress undefined when the run has ended */
        progressed(progress) {
            if (!running && !progress?.machines.length) return;
            running = progress;
            show();
        },
    };
}

/** @param {WorkersPayload | undefined} known @param {string} address */
function nobody(known, address) {
    if (!known?.listening) return t("Run the prompt once; then other machines can join at $address.", { address });
    const command = `python dev.py worker --join ${address} --token-file clear_attention_token.txt`;
    return t("No other machine has joined. Run there: $command", { command });
}

/**
 * @param {WorkersPayload["workers"][number]} worker
 * @param {number | undefined} share of this step that it has done
 */
function row({ name, cards, link, rows, of, problem }, share) {
    const facts = [
        cards.length > 1 ? t("$count GPUs", { count: cards.length }) : "",
        link ? `${Number((link / 1e9).toPrecision(3))} Gbit/s` : "",
        problem || (rows ? t("$rows of $all rows", { rows, all: of }) : t("no rows yet")),
    ];
    const text = facts.filter(Boolean).join(", ");
    const item = html("li", { title: `${name}: ${text}` }, html("b", {}, name), html("span", {}, text));
    item.classList.toggle("clear-left-out", problem !== "");
    if (share !== undefined) {
        item.append(html("progress", { "aria-label": name, max: 100, value: Math.round(100 * share) }));
    }
    return item;
}

/**
 * Of the blocks that a machine's bands have in this step, those that are done.
 *
 * @param {BandProgress | undefined} progress
 * @param {string} name
 */
function shareOf(progress, name) {
    if (!progress) return undefined;
    const own = progress.bands.flatMap(([, , lane], band) => (progress.machines[lane] === name ? [progress.done[band]] : []));
    if (!own.length) return undefined;
    return own.reduce((sum, done) => sum + done, 0) / (progress.blocks * own.length);
}
