// Widgets that do not count at present: they keep their values, and cannot be changed.

/**
 * @param {import("./types").Node} node
 * @param {(name: string) => boolean | undefined} isInactive undefined for a widget that is always active
 */
export function markInactive(node, isInactive) {
    for (const widget of node.widgets ?? []) {
        const inactive = isInactive(widget.name);
        if (inactive === undefined) continue;
        if (widget.disabled !== inactive) node.setDirtyCanvas(true, true);
        widget.disabled = inactive;
        // Nodes 2.0 reads a widget's options once, so they cannot say it.
        for (const row of document.querySelectorAll(`[data-node-id="${node.id}"] .lg-node-widget`)) {
            // The label is the row's first text; which element holds it differs between pages.
            const texts = [...row.querySelectorAll("*")].filter((part) => !part.childElementCount);
            const label = texts.map((part) => part.textContent?.trim()).find(Boolean);
            if (label === (widget.label ?? widget.name)) {
                row.lastElementChild?.toggleAttribute("inert", inactive); // its slot still takes a link
            }
        }
    }
}
