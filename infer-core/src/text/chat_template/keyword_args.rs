//! Arguments of Python functions, given by position or by name.

use minijinja::{
    Error,
    value::{ArgType, Kwargs},
};

/// The argument `given` by position, else the one with this `name`.
pub fn either<'a, T>(given: Option<T>, options: &'a Kwargs, name: &'a str) -> Result<Option<T>, Error>
where
    Option<T>: ArgType<'a, Output = Option<T>>,
{
    match given {
        Some(given) => Ok(Some(given)),
        None => options.get(name),
    }
}
