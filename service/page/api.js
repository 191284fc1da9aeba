// Requests to the server that this page comes from.

const TOKEN = "convoy.token";

/** The server's refusal, or that it does not answer (status 0). */
export class Refused extends Error {
  constructor(status, reason, message, retryAfter) {
    super(message);
    Object.assign(this, { status, reason, retryAfter });
  }
}

export const token = () => sessionStorage.getItem(TOKEN) ?? "";

export function setToken(value) {
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

/** Returns the response. Throws Refused; where the server does not know who calls, the page hears of it, too. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.authorization = `Bearer ${token()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Refused(0, "NO_ANSWER", "The server does not answer.");
  }
  if (response.ok) return response;
  const refused = await refusal(response);
  if (refused.status === 401) document.dispatchEvent(new CustomEvent("unknown-caller", { detail: refused.message }));
  throw refused;
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** The path of a model, or of one of its versions (0: the one that serves). */
export const modelPath = (api, { model, version }) => `/${api}/models/${model}${version ? `/versions/${version}` : ""}`;

async function refusal(response) {
  try {
    const { error, reason, retry_after: retryAfter } = await response.json();
    return new Refused(response.status, reason, error, retryAfter);
  } catch {
    return new Refused(response.status, "", `The server answers with status ${response.status}.`);
  }
}
