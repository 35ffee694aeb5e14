// What the page asks the server.

import { api } from "../../scripts/api.js";
import { say } from "./words.mjs";

/**
 * The answer of one of this pack's routes, or a sentence that says why there is none.
 *
 * @template Facts
 * @param {string} route
 * @param {Record<string, unknown>} [values]
 * @returns {Promise<Facts | import("./types").Refused>}
 */
export async function ask(route, values = {}) {
    const query = new URLSearchParams(Object.entries(values).map(([name, value]) => [name, String(value)]));
    try {
        const answer = await api.fetchApi(`/clear_attention/${route}?${query}`);
        const facts = await answer.json();
        return answer.ok ? facts : { refused: facts.error };
    } catch {
        return { refused: say("The server does not answer.") };
    }
}

/**
 * Asks for what is wanted now and shows the answer. While one answer is under way only the newest question waits, so
 * a radius that is turned quickly costs one request at a time.
 *
 * @template Facts
 * @param {string} route
 * @param {(facts: Facts | import("./types").Refused) => void} show
 */
export function asker(route, show) {
    let wanted = "";
    let busy = false;
    /** @param {Record<string, unknown>} values @param {boolean} [again] ask even if nothing has changed */
    return async (values, again = false) => {
        const question = JSON.stringify(values);
        if (question === wanted && !again) return;
        wanted = question;
        if (busy) return;
        busy = true;
        for (let asked = ""; asked !== wanted; ) {
            asked = wanted;
            /** @type {Facts | import("./types").Refused} */
            const facts = await ask(route, JSON.parse(asked));
            if (asked === wanted) show(facts);
        }
        busy = false;
    };
}
