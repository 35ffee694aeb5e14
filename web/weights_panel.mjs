// Panel of Load CLEAR Weights: whether the file is here, how large it is, and its licence.

import { request } from "./api.mjs";
import { html } from "./dom.mjs";
import { valueOf } from "./graph.mjs";
import { t } from "./i18n.mjs";

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function weightsPanel(node) {
    const about = html("div", { class: "clear-weights", role: "status" });
    const element = html("div", { class: "clear-panel" }, about);
    /** @type {import("./types").WeightsFile[]} */
    let files = [];

    function refresh() {
        const name = valueOf(node, "weights_name");
        const file = files.find((other) => other.name === name);
        about.replaceChildren(...(file ? lines(file, valueOf(node, "download") === "never") : []));
    }

    async function requestFiles() {
        /** @type {import("./types").WeightsFile[] | import("./types").Refused} */
        const found = await request("weights");
        files = Array.isArray(found) ? found : [];
        refresh();
    }

    void requestFiles();
    return {
        element,
        height: () => 76,
        refresh,
        concerns: (text) => text.startsWith(`${valueOf(node, "weights_name")}: `),
        runEnded: () => void requestFiles(),
    };
}

/** @param {import("./types").WeightsFile} file @param {boolean} never */
function lines(file, never) {
    const absent = never
        ? t("missing, and download is never")
        : t("missing: $size to download when it runs", { size: file.size });
    const factor = file.down_factor ?? 1;
    const context = factor > 1 ? t("global context ($factor x $factor pooled)", { factor }) : t("no global context");
    return [
        file.here
            ? html("p", { class: "clear-here" }, t("found, $size", { size: file.size }))
            : html("p", { class: "clear-absent" }, absent),
        html("p", {}, file.radius === null ? t("radius: see the file") : t("radius $radius, $context", { radius: file.radius, context })),
        ...(file.link && file.licence
            ? [html("p", {}, html("a", { href: file.link, target: "_blank", rel: "noopener" }, file.licence))]
            : []),
    ];
}
