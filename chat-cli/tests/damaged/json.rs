//! Edits of a JSON file that keep it valid JSON: changes numbers, strings, lists and objects.

use serde_json::{Map, Value, json};

use crate::mutation::Random;

/// A copy of `good` with one to three of its values changed; `None` if it is not JSON.
pub fn edited(good: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(good).ok()?;
    for _ in 0..=random.below(3) {
        let strings = strings(&value);
        let at = random.below(count(&value));
        edit(nth(&mut value, at), &strings, random);
    }
    Some(value.to_string().into_bytes())
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(list) => Box::new(list.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// A long list counts like a short one, so that other fields are edited too.
fn weight(value: &Value) -> usize {
    let most = if matches!(value, Value::Array(list) if list.len() > 20) { 20 } else { usize::MAX };
    count(value).min(most)
}

fn count(value: &Value) -> usize {
    1 + children(value).map(weight).sum::<usize>()
}

/// The value with index `at`, counted from the outside in.
fn nth(value: &mut Value, at: usize) -> &mut Value {
    if at == 0 {
        return value;
    }
    let mut left = at - 1;
    let children: Box<dyn Iterator<Item = &mut Value>> = match value {
        Value::Array(list) => Box::new(list.iter_mut()),
        Value::Object(fields) => Box::new(fields.values_mut()),
        _ => unreachable!("a value without children counts as one"),
    };
    for child in children {
        let weight = weight(child);
        if left < weight {
            // In a long list, any element.
            let within = left * count(child) / weight;
            return nth(child, within);
        }
        left -= weight;
    }
    unreachable!("`at` is below the count")
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Object(fields) => fields.keys().cloned().chain(fields.values().flat_map(strings)).take(400).collect(),
        other => children(other).flat_map(strings).take(400).collect(),
    }
}

fn edit(value: &mut Value, strings: &[String], random: &mut Random) {
    *value = match value.take() {
        Value::Number(number) if random.below(8) > 0 => other_number(&number, random),
        Value::String(text) if random.below(8) > 0 => other_text(&text, strings, random).into(),
        Value::Array(list) if random.below(8) > 0 => other_list(list, random).into(),
        Value::Object(fields) if random.below(8) > 0 => other_object(fields, strings, random).into(),
        Value::Bool(is) if random.below(4) > 0 => (!is).into(),
        _ => [json!(null), json!(true), json!(0), json!(-1), json!(""), json!("0"), json!([]), json!({}), json!([[]])]
            [random.below(9)]
        .clone(),
    };
}

fn other_number(number: &serde_json::Number, random: &mut Random) -> Value {
    let old = number.as_f64().unwrap_or_default();
    let integer = number.as_i64().unwrap_or_default();
    match random.below(22) {
        0 => json!(0),
        1 => json!(-1),
        2 => json!(1),
        3 => json!(integer.saturating_add(1)),
        4 => json!(integer.saturating_sub(1)),
        5 => json!(integer.saturating_mul(2)),
        6 => json!(integer / 2),
        7 => json!(integer.saturating_add(512)),
        8 => json!(integer.saturating_add(128_000)),
        9 => json!(integer.saturating_neg()),
        10 => json!(i32::MAX),
        11 => json!(u32::MAX),
        12 => json!(1u64 << 32),
        13 => json!(1u64 << 53),
        14 => json!(u64::MAX),
        15 => json!(i64::MIN),
        16 => json!(1e308),
        17 => json!(-1e308),
        18 => json!(1e-308),
        19 => json!(old + 0.5),
        20 => json!(old * 1e6),
        _ => json!(old.to_string()),
    }
}

fn other_text(text: &str, strings: &[String], random: &mut Random) -> String {
    match random.below(12) {
        0 => String::new(),
        1 => text.repeat(2),
        2 => text.chars().rev().collect(),
        3 => text.chars().skip(1).collect(),
        4 => text.chars().take(text.chars().count() / 2).collect(),
        5 => "../".to_string() + text,
        6 => format!("{text}\u{0}\u{10FFFF}"),
        7 => "é日".repeat(1 + random.below(50)),
        8 => "{{ messages[9].content * 3 }}{% for m in messages %}{{ m }}".into(),
        9 => "(((a+)+)+)+$".into(),
        _ => strings.get(random.below(strings.len())).cloned().unwrap_or_default(),
    }
}

fn other_list(mut list: Vec<Value>, random: &mut Random) -> Vec<Value> {
    let at = random.below(list.len());
    match random.below(6) {
        0 => list.clear(),
        1 => list.truncate(at),
        2 => drop(list.drain(..at)),
        3 => list.reverse(),
        4 if !list.is_empty() => list.push(list[at].clone()),
        _ => list.push(json!(random.next() as u32)),
    }
    list
}

fn other_object(mut fields: Map<String, Value>, strings: &[String], random: &mut Random) -> Map<String, Value> {
    let keys: Vec<String> = fields.keys().cloned().collect();
    let Some(key) = keys.get(random.below(keys.len())) else { return fields };
    let other = &keys[random.below(keys.len())];
    match random.below(4) {
        0 => drop(fields.remove(key)),
        // Swap two fields.
        1 => {
            let (a, b) = (fields[key].clone(), fields[other].clone());
            fields.insert(key.clone(), b);
            fields.insert(other.clone(), a);
        }
        2 => {
            let value = fields.remove(key).expect("a field of it");
            fields.insert(strings.get(random.below(strings.len())).cloned().unwrap_or_default(), value);
        }
        _ => drop(fields.insert(key.clone(), fields[other].clone())),
    }
    fields
}
