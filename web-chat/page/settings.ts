// The settings panel: system prompt and sampling settings, stored in localStorage. An empty field means the default: the
// model's recommendation, else the engine's.

import type { LoadedInfo } from '../engine';
import { byId, h } from './dom';

interface Field {
  name: string;
  label: string;
  hint: string;
  min: number;
  max?: number;
  step: number;
}

const FIELDS: Field[] = [
  { name: 'temperature', label: 'Temperature', hint: '0: always the most likely token', min: 0, max: 5, step: 0.05 },
  { name: 'top_p', label: 'Top p', hint: 'sample from the most likely tokens up to this total probability', min: 0.01, max: 1, step: 0.01 },
  { name: 'top_k', label: 'Top k', hint: 'sample from this many most likely tokens; 0: all', min: 0, step: 1 },
  { name: 'min_p', label: 'Min p', hint: 'drop tokens below this fraction of the highest probability', min: 0, max: 1, step: 0.01 },
  { name: 'repetition_penalty', label: 'Repetition penalty', hint: '1: off; try 1.1 if answers repeat themselves', min: 0.1, max: 3, step: 0.05 },
  { name: 'presence_penalty', label: 'Presence penalty', hint: '0: off', min: -2, max: 2, step: 0.1 },
  { name: 'frequency_penalty', label: 'Frequency penalty', hint: '0: off', min: -2, max: 2, step: 0.1 },
  { name: 'max_tokens', label: 'Maximum tokens', hint: 'length limit of an answer', min: 1, step: 1 },
  { name: 'seed', label: 'Seed', hint: 'empty: a new seed for each answer', min: 0, step: 1 },
  { name: 'context', label: 'Context, in tokens', hint: 'takes effect when a model is loaded; a shorter one needs less memory', min: 64, step: 64 },
];
const KEY = 'settings';

export interface Settings {
  system: string;
  sampling: Record<string, number>;
  context: number | undefined;
}

export class SettingsForm {
  private readonly inputs = new Map<string, HTMLInputElement>();
  private readonly system: HTMLTextAreaElement;

  constructor() {
    const stored = readStored();
    this.system = h('textarea', { id: 'system', rows: '3' });
    this.system.value = typeof stored['system'] === 'string' ? stored['system'] : '';
    const form = byId<HTMLFormElement>('settings-form');
    form.append(h('label', { for: 'system' }, 'System prompt'), this.system);
    for (const { name, label, hint, min, max, step } of FIELDS) {
      const input = h('input', {
        id: name, type: 'number', min: String(min), max: max === undefined ? undefined : String(max), step: String(step),
        'aria-describedby': `${name}-hint`,
      });
      const value = stored[name];
      if (typeof value === 'number') input.value = String(value);
      this.inputs.set(name, input);
      form.append(h('div', { class: 'field' },
        h('label', { for: name }, label), input, h('span', { id: `${name}-hint`, class: 'hint' }, hint)));
    }
    form.append(h('button', { type: 'button', click: () => this.clear() }, 'Reset to the model’s defaults'));
    form.addEventListener('input', () => this.save());
    form.addEventListener('submit', (event) => event.preventDefault());
  }

  read(): Settings {
    const sampling: Record<string, number> = {};
    for (const [name, input] of this.inputs) {
      if (input.value !== '' && input.validity.valid) sampling[name] = input.valueAsNumber;
    }
    const { context, ...rest } = sampling;
    return { system: this.system.value.trim(), sampling: rest, context };
  }

  /** Shows the defaults as placeholders of empty fields. */
  showDefaults(loaded: LoadedInfo): void {
    const values: Record<string, number> = { ...loaded.sampling, context: loaded.context };
    for (const [name, input] of this.inputs) {
      const value = values[name];
      input.placeholder = value === undefined ? '' : String(Math.round(value * 1000) / 1000);
    }
  }

  private clear(): void {
    this.inputs.forEach((input) => { input.value = ''; });
    this.system.value = '';
    this.save();
  }

  private save(): void {
    const { system, sampling, context } = this.read();
    localStorage.setItem(KEY, JSON.stringify({ system, ...sampling, context }));
  }
}

function readStored(): Record<string, unknown> {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? '{}') as Record<string, unknown>;
  } catch {
    return {};
  }
}
