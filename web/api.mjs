// Requests to this pack's routes on the server.

import { api } from "../../scripts/api.js";
import { t } from "./i18n.mjs";

/** @typedef {import("./types").Refused} Refused */

/**
 * The answer of one route, or the reason why there is none.
 *
 * @template Payload
 * @param {string} route
 * @param {Record<string, unknown>} [values]
 * @param {"GET" | "POST"} [method]
 * @returns {Promise<Payload | Refused>}
 */
export async function request(route, values = {}, method = "GET") {
    const query = new URLSearchParams(Object.entries(values).map(([name, value]) => [name, String(value)]));
    return answerOf(`${route}?${query}`, { method });
}

/**
 * The same for a route that changes something.
 *
 * @template Payload
 * @param {string} route
 * @param {Record<string, unknown>} values
 * @returns {Promise<Payload | Refused>}
 */
export async function send(route, values) {
    const headers = { "Content-Type": "application/json" };
    return answerOf(route, { method: "POST", headers, body: JSON.stringify(values) });
}

/**
 * @param {string} path below that of this pack
 * @param {RequestInit} [options]
 */
async function answerOf(path, options) {
    try {
        const response = await api.fetchApi(`/clear_attention/${path}`, options);
        const payload = await response.json();
        return response.ok ? payload : { refused: payload.error };
    } catch {
        return { refused: t("The server does not answer.") };
    }
}

/**
 * A function that requests a route and shows the answer. While one request is pending only the newest values wait, so
 * dragging a radius costs one request at a time, and an outdated answer is never shown.
 *
 * @template Payload
 * @param {string} route
 * @param {(payload: Payload | Refused) => void} show
 */
export function latestRequest(route, show) {
    let wanted = "";
    let busy = false;
    /** @param {Record<string, unknown>} values @param {boolean} [again] request even if nothing has changed */
    return async (values, again = false) => {
        const query = JSON.stringify(values);
        if (query === wanted && !again) return;
        wanted = query;
        if (busy) return;
        busy = true;
        for (let sent = ""; sent !== wanted; ) {
            sent = wanted;
            /** @type {Payload | Refused} */
            const payload = await request(route, JSON.parse(sent));
            if (sent === wanted) show(payload);
        }
        busy = false;
    };
}

/** The address of an image of the server. @param {import("./types").ServerImage} image */
export function imageAddress({ filename, subfolder, type }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}
