// Panel of Load CLEAR Weights: whether the file is here, how large it is, its licence, and its download.

import { request } from "./api.mjs";
import { html } from "./dom.mjs";
import { downloadControl } from "./download.mjs";
import { valueOf } from "./graph.mjs";
import { t } from "./i18n.mjs";
import { PADDING, measured } from "./measured.mjs";

/**
 * @param {import("./types").Node} node
 * @returns {import("./types").Panel}
 */
export function weightsPanel(node) {
    const about = html("div", { class: "clear-weights", role: "status" });
    const download = downloadControl(node, phaseChanged);
    const element = html("div", { class: "clear-panel" }, about, download.element);
    const height = measured(node, about);
    /** @type {import("./types").WeightsFile[]} */
    let files = [];

    function refresh() {
        const name = valueOf(node, "weights_name");
        const file = files.find((other) => other.name === name);
        download.show(name);
        const { phase, verified = false } = download.state() ?? {};
        const absent = phase === "running" ? t("downloading") : absentText(file, valueOf(node, "download"));
        about.replaceChildren(...(file ? lines(file, absent, verified) : []));
    }

    /** @param {import("./types").DownloadState} state */
    function phaseChanged(state) {
        if (state.phase === "here") void requestFiles();
        else refresh();
    }

    async function requestFiles() {
        await download.update();
        /** @type {import("./types").WeightsFile[] | import("./types").Refused} */
        const found = await request("weights");
        files = Array.isArray(found) ? found : [];
        refresh();
    }

    void requestFiles();
    return {
        element,
        height: () => 2 * PADDING + height() + download.height(),
        refresh,
        // While it downloads, the panel itself says what the run would.
        concerns: (text) =>
            text.startsWith(`${valueOf(node, "weights_name")}: `) && download.state()?.phase !== "running",
        runEnded: () => void requestFiles(),
        downloadChanged: download.changed,
    };
}

/** @param {import("./types").WeightsFile | undefined} file @param {unknown} download the node's value */
function absentText(file, download) {
    if (download === "never") return t("missing, and download is never");
    return t("missing: $size to download when it runs", { size: file?.size ?? "" });
}

/** @param {import("./types").WeightsFile} file @param {string} absent @param {boolean} verified */
function lines(file, absent, verified) {
    const { size } = file;
    const found = verified ? t("found, $size, verified", { size }) : t("found, $size", { size });
    const factor = file.down_factor ?? 1;
    const context = factor > 1 ? t("global context ($factor x $factor pooled)", { factor }) : t("no global context");
    return [
        file.here
            ? html("p", { class: "clear-here" }, found)
            : html("p", { class: "clear-absent" }, absent),
        html("p", {}, file.radius === null ? t("radius: see the file") : t("radius $radius, $context", { radius: file.radius, context })),
        ...(file.link && file.licence
            ? [html("p", {}, html("a", { href: file.link, target: "_blank", rel: "noopener" }, file.licence))]
            : []),
    ];
}
