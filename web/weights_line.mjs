// On Load CLEAR Weights: whether the file is here, how large it is, and its licence.

import { html } from "./dom.mjs";
import { valueOf } from "./graph.mjs";
import { ask } from "./server.mjs";
import { say } from "./words.mjs";

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function weightsPanel(node) {
    const element = html("div", { class: "clear-panel clear-weights", role: "status" });
    /** @type {import("./types").WeightsFile[]} */
    let files = [];

    function refresh() {
        const name = valueOf(node, "weights_name");
        const file = files.find((other) => other.name === name);
        element.replaceChildren(...(file ? lines(file, valueOf(node, "download") === "never") : []));
    }

    async function askFiles() {
        /** @type {import("./types").WeightsFile[] | import("./types").Refused} */
        const found = await ask("weights");
        files = Array.isArray(found) ? found : [];
        refresh();
    }

    void askFiles();
    return { element, height: () => 76, refresh, runEnded: () => void askFiles() };
}

/** @param {import("./types").WeightsFile} file @param {boolean} never */
function lines(file, never) {
    const absent = never
        ? say("not here, and download is never")
        : say("not here: $size to download when it runs", { size: file.size });
    const factor = file.down_factor ?? 1;
    const coarse = factor > 1 ? say("coarse view $factor x $factor", { factor }) : say("no coarse view");
    return [
        file.here
            ? html("p", { class: "clear-here" }, say("downloaded, $size", { size: file.size }))
            : html("p", { class: "clear-absent" }, absent),
        html("p", {}, file.radius === null ? say("radius: see the file") : say("radius $radius, $coarse", { radius: file.radius, coarse })),
        ...(file.link && file.licence
            ? [html("p", {}, html("a", { href: file.link, target: "_blank", rel: "noopener" }, file.licence))]
            : []),
    ];
}
