// HTML from a model's answer is untrusted. Only these elements and attributes are left; nothing loads or runs.
import "../vendor/dompurify/dompurify.js";

const TAGS = (
  "a b blockquote br code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i input kbd li mark ol p pre s samp small span strong " +
  "sub sup table tbody td th thead tr u ul"
).split(" ");
const ATTRIBUTES = "align checked colspan data-display data-language data-tex disabled href rowspan start title type".split(" ");
const OPTIONS = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ATTRIBUTES,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ATTRIBUTES.filter((name) => name !== "href"), // the expression above is for addresses only
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** `text` for use in HTML, also in an attribute with double quotes. */
export const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");

/** A document fragment of safe elements. Links open in another tab that does not know this page. */
export function sanitised(html) {
  const fragment = window.DOMPurify.sanitize(html, OPTIONS);
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) continue;
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const input of fragment.querySelectorAll("input")) {
    if (input.type === "checkbox") input.disabled = true;
    else input.remove();
  }
  return fragment;
}

/** The spans of highlighted code. */
export function sanitisedCode(html) {
  return window.DOMPurify.sanitize(html, { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"], RETURN_DOM_FRAGMENT: true });
}
