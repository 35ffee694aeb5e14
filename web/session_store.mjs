// What runs have left on nodes, kept for the browser's tab: undo, a reload and another workflow do not lose it.

const MOST = 20; // workflows

/**
 * A store of values by workflow, the oldest workflow first, and by name within it.
 *
 * @template Value
 * @param {string} key in the browser's session storage
 */
export function sessionStore(key) {
    /** @type {Map<string, Record<string, Value>>} */
    const kept = new Map(Object.entries(JSON.parse(sessionStorage.getItem(key) ?? "{}")));
    /** The values of a workflow; a copy. @param {string} workflow @returns {Record<string, Value>} */
    const of = (workflow) => ({ ...kept.get(workflow) });

    /** @param {string} workflow @param {Record<string, Value>} values */
    function save(workflow, values) {
        kept.delete(workflow);
        kept.set(workflow, values);
        for (const oldest of [...kept.keys()].slice(0, -MOST)) kept.delete(oldest);
        try {
            sessionStorage.setItem(key, JSON.stringify(Object.fromEntries(kept)));
        } catch {
            // Full: the page keeps its drafts there too. The values are then gone after a reload.
        }
    }

    return {
        of,
        save,
        /** Save one value beside the others. @param {string} workflow @param {string} name @param {Value} value */
        put: (workflow, name, value) => save(workflow, { ...of(workflow), [name]: value }),
    };
}
