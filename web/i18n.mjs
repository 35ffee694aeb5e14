// The texts of the panels in the language of the page: English is in the code, the others are in locales/*/main.json.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** @type {Record<string, Record<string, string>>} */
const translations = { en: {} };

/** The page's language, such as en or ja. @returns {string} */
function language() {
    return app.extensionManager.setting.get("Comfy.Locale") ?? "en";
}

/**
 * Fetch the translations for the page's language, once; English needs none, and a language without translations is
 * shown in English. The page reopens its workflow when the user changes the language, so there is nothing to listen to.
 *
 * @param {() => void} loaded called when texts have changed
 */
export async function loadTranslations(loaded) {
    const wanted = language();
    if (wanted in translations) return;
    translations[wanted] = {};
    try {
        const all = await (await api.fetchApi("/i18n")).json();
        translations[wanted] = all[wanted]?.clearPanels ?? {};
        loaded();
    } catch {
        delete translations[wanted]; // the next panel tries again
    }
}

/**
 * A text in the page's language, its $names replaced by values.
 *
 * @param {string} text in English
 * @param {Record<string, string | number>} [values]
 */
export function t(text, values = {}) {
    const translated = translations[language()]?.[text] ?? text;
    return translated.replace(/\$([a-z]+)/g, (placeholder, name) => String(values[name] ?? placeholder));
}
