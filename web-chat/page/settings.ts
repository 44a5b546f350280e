// System prompt and sampling settings, kept in the browser. An empty field means the default: what the model's
// files recommend, else the engine's own.

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
  { name: 'temperature', label: 'Temperature', hint: '0 takes the most likely token always', min: 0, max: 5, step: 0.05 },
  { name: 'top_p', label: 'Top p', hint: 'the most likely tokens that sum up to this', min: 0.01, max: 1, step: 0.01 },
  { name: 'top_k', label: 'Top k', hint: 'so many of the most likely tokens; 0: all', min: 0, step: 1 },
  { name: 'min_p', label: 'Min p', hint: 'at least this times as likely as the most likely', min: 0, max: 1, step: 0.01 },
  { name: 'repetition_penalty', label: 'Repetition penalty', hint: '1: none; try 1.1 where answers repeat themselves', min: 0.1, max: 3, step: 0.05 },
  { name: 'presence_penalty', label: 'Presence penalty', hint: '0: none', min: -2, max: 2, step: 0.1 },
  { name: 'frequency_penalty', label: 'Frequency penalty', hint: '0: none', min: -2, max: 2, step: 0.1 },
  { name: 'max_tokens', label: 'Longest answer, in tokens', hint: 'an answer ends there at the latest', min: 1, step: 1 },
  { name: 'seed', label: 'Seed', hint: 'empty: another one each time', min: 0, step: 1 },
  { name: 'context', label: 'Context, in tokens', hint: 'when a model is loaded next; less takes less memory', min: 64, step: 64 },
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
    const kept = readKept();
    this.system = h('textarea', { id: 'system', rows: '3' });
    this.system.value = typeof kept['system'] === 'string' ? kept['system'] : '';
    const form = byId<HTMLFormElement>('settings-form');
    form.append(h('label', { for: 'system' }, 'System prompt'), this.system);
    for (const { name, label, hint, min, max, step } of FIELDS) {
      const input = h('input', {
        id: name, type: 'number', min: String(min), max: max === undefined ? undefined : String(max), step: String(step),
        'aria-describedby': `${name}-hint`,
      });
      const value = kept[name];
      if (typeof value === 'number') input.value = String(value);
      this.inputs.set(name, input);
      form.append(h('div', { class: 'field' },
        h('label', { for: name }, label), input, h('span', { id: `${name}-hint`, class: 'hint' }, hint)));
    }
    form.append(h('button', { type: 'button', click: () => this.clear() }, 'Back to the model’s own'));
    form.addEventListener('input', () => this.keep());
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

  /** Shows the defaults where nothing is set. */
  recommend(loaded: LoadedInfo): void {
    const values: Record<string, number> = { ...loaded.sampling, context: loaded.context };
    for (const [name, input] of this.inputs) {
      const value = values[name];
      input.placeholder = value === undefined ? '' : String(Math.round(value * 1000) / 1000);
    }
  }

  private clear(): void {
    this.inputs.forEach((input) => { input.value = ''; });
    this.system.value = '';
    this.keep();
  }

  private keep(): void {
    const { system, sampling, context } = this.read();
    localStorage.setItem(KEY, JSON.stringify({ system, ...sampling, context }));
  }
}

function readKept(): Record<string, unknown> {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? '{}') as Record<string, unknown>;
  } catch {
    return {};
  }
}
