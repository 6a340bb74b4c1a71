/** Which models there are, and whether the server takes questions now. */

import { computed, signal } from "@preact/signals";
import { ApiError } from "../api/http";
import * as api from "../api/server";
import { ask } from "./key";
import { model } from "./preferences";

const AGAIN_MS = 1500;

export type State = "checking" | "ready" | "loading" | "locked" | "unreachable";

export const state = signal<State>("checking");
export const models = signal<api.Model[]>([]);
/** The model to ask: the preferred one if it is there, else the first. */
export const current = computed(() => models.value.find((one) => one.id === model.value) ?? models.value[0]);

let timer: ReturnType<typeof setTimeout> | undefined;

/** Ask the server what it is; again, until it can say. */
export async function look(): Promise<void> {
  clearTimeout(timer);
  try {
    models.value = await api.models();
    state.value = "ready";
  } catch (error) {
    const status = error instanceof ApiError ? error.status : 0;
    if (status === 401) {
      state.value = "locked";
      ask(() => void look());
      return;
    }
    state.value = status === 503 ? "loading" : "unreachable";
    timer = setTimeout(() => void look(), AGAIN_MS);
  }
}
