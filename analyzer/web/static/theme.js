// Dark or light, and the page's colours by name.

const KEY = "cxls-theme";
const root = document.documentElement;
const listeners = [];

function kept() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // storage is switched off
  }
}

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const apply = () => {
  root.dataset.theme = kept() ?? (systemIsDark.matches ? "dark" : "light");
  listeners.forEach(changed => changed());
};

// A colour as #rrggbb.
export const ink = name => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
export const theme = () => root.dataset.theme;
export const onTheme = changed => listeners.push(changed);

export function toggleTheme() {
  const next = root.dataset.theme === "dark" ? "light" : "dark";
  try {
    localStorage.setItem(KEY, next);
    apply();
  } catch {
    root.dataset.theme = next;
    listeners.forEach(changed => changed());
  }
}

systemIsDark.addEventListener("change", apply);
apply();
