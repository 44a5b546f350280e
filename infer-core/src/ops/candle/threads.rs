//! Division of work among threads.

/// Fewest multiplications per thread. Fewer finish before another thread wakes up.
const MIN_PRODUCTS: usize = 700_000;

/// Number of parts into which to divide this number of multiplications.
pub(super) fn parts(products: usize) -> usize {
    (products / MIN_PRODUCTS).clamp(1, rayon::current_num_threads())
}

/// The results of `part` for 0 to `count - 1`, computed in parallel. The calling thread computes the first.
pub(super) fn in_parts<T: Send>(count: usize, part: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut done: Vec<Option<T>> = (0..count).map(|_| None).collect();
    let (first, others) = done.split_first_mut().expect("at least one part");
    let part = &part;
    if others.is_empty() {
        *first = Some(part(0));
    } else {
        rayon::in_place_scope(|scope| {
            for (i, other) in others.iter_mut().enumerate() {
                scope.spawn(move |_| *other = Some(part(i + 1)));
            }
            *first = Some(part(0));
        });
    }
    done.into_iter().map(|part| part.expect("every part has run")).collect()
}
