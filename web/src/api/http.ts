/** Requests to the server this page came from. Paths are relative, so a proxy may put it anywhere. */

import { key } from "../store/key";

/** The server said no, in its own words. status 0: it was not reached. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

/** A response that is ok. Throws ApiError, or an AbortError when `signal` says so. */
export async function send(path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = {};
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("", 0, "unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => "");
  try {
    return fromBody(JSON.parse(text), response.status);
  } catch {
    return new ApiError(text.slice(0, 300) || response.statusText, response.status);
  }
}

/** The error of `{"error": {"message", "code"}}`, in a response or in an event. */
export function fromBody(body: unknown, status: number): ApiError {
  const error = (body as { error?: { message?: unknown; code?: unknown } } | null)?.error;
  const message = typeof error?.message === "string" ? error.message : JSON.stringify(body);
  return new ApiError(message, status, typeof error?.code === "string" ? error.code : null);
}
