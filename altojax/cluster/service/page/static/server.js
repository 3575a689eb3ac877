// What is asked of the server. The token lives as long as the tab; no cookie is ever set.

const KEY = "altojax-token";

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

const tags = new Map();

// Returns {data, nowS} of a JSON address, data null where it is what it was when last asked.
export async function ask(address) {
  const headers = bearer();
  const known = tags.get(address);
  if (known?.token === headers.Authorization && known) headers["If-None-Match"] = known.tag;
  const answer = await fetch(address, { headers, cache: "no-store", signal: AbortSignal.timeout(15000) });
  const nowS = Number(answer.headers.get("Queue-Now"));
  if (answer.status === 304) return { data: null, nowS };
  if (!answer.ok) throw await failure(answer);
  const data = await answer.json();
  tags.set(address, { tag: answer.headers.get("ETag"), token: headers.Authorization });
  return { data, nowS };
}

// Forgets what was answered, so that the next answer comes whole.
export function forget(address) {
  tags.delete(address);
}

export async function change(address) {
  const answer = await fetch(address, { method: "POST", headers: bearer(), signal: AbortSignal.timeout(15000) });
  if (!answer.ok) throw await failure(answer);
}

function bearer() {
  const known = token.get();
  return known ? { Authorization: `Bearer ${known}` } : {};
}

async function failure(answer) {
  let told = answer.statusText;
  try {
    told = (await answer.json()).error;
  } catch {
    // Not JSON: its status says enough.
  }
  return Object.assign(new Error(told), { status: answer.status });
}
