// The download of a released weights file: a button to start, resume or cancel it, its progress, and why it failed.

import { request, send } from "./api.mjs";
import { html } from "./dom.mjs";
import { t } from "./i18n.mjs";
import { measured } from "./measured.mjs";

/** @typedef {import("./types").DownloadState} DownloadState */

/**
 * @param {import("./types").Node} node
 * @param {(state: DownloadState) => void} phaseChanged called when a download has begun or ended
 */
export function downloadControl(node, phaseChanged) {
    const about = html("p", { role: "status" });
    const bar = html("progress", { "aria-label": t("Download") });
    const start = html("button", { type: "button" });
    const cancel = html("button", { type: "button" }, t("Cancel"));
    const element = html("div", { class: "clear-download" }, about, html("div", {}, bar, start, cancel));
    /** @type {Map<string, DownloadState>} */
    const states = new Map();
    let chosen = ""; // the name of the file that the node names

    /** Buttons stay where they are while they are being clicked; only what they say changes. */
    function show() {
        const state = states.get(chosen);
        const running = state?.phase === "running";
        element.hidden = !state || state.phase === "here";
        if (!state || element.hidden) return;
        const text = running ? progressText(state) : state.text || keptText(state);
        if (about.textContent !== text) about.textContent = text;
        about.hidden = !text;
        about.classList.toggle("clear-failed", state.phase === "failed");
        bar.hidden = cancel.hidden = !running;
        start.hidden = running;
        start.textContent = state.done ? t("Resume") : t("Download $size", { size: state.size });
        if (state.share === null) bar.removeAttribute("value"); // it moves
        else bar.value = state.share;
    }

    /** @param {DownloadState} state */
    function changed(state) {
        const before = states.get(state.name);
        if (before && before.number > state.number) return; // an answer that a message has overtaken
        states.set(state.name, state);
        if (state.name === chosen) show();
        if (before && before.phase !== state.phase) phaseChanged(state);
    }

    /** @param {string} route */
    async function press(route) {
        const name = chosen;
        /** @type {DownloadState | import("./types").Refused} */
        const answer = await send(route, { name });
        const before = states.get(name);
        if (!("refused" in answer)) changed(answer);
        else if (before) changed({ ...before, phase: "failed", text: answer.refused });
    }

    start.addEventListener("click", () => void press("download"));
    cancel.addEventListener("click", () => void press("download/cancel"));

    return {
        element,
        height: measured(node, element),
        /** Show the file of that name, if it is a released one. @param {unknown} name */
        show(name) {
            chosen = String(name ?? "");
            show();
        },
        /** The state of the file that is shown. */
        state: () => states.get(chosen),
        changed,
        /** Ask for the states of all files. */
        async update() {
            /** @type {DownloadState[] | import("./types").Refused} */
            const found = await request("downloads");
            if (Array.isArray(found)) found.forEach(changed);
        },
    };
}

/** @param {DownloadState} state */
function progressText({ text, done, size, speed, left }) {
    if (text) return text;
    if (!done) return t("connecting");
    const amount = t("$done of $size", { done, size });
    return speed && left ? t("$amount, $speed, $left left", { amount, speed, left }) : amount;
}

/** @param {DownloadState} state */
function keptText({ done, size }) {
    return done ? t("$done of $size are here", { done, size }) : "";
}
