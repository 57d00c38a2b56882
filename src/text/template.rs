//! Chat templates: Jinja, as transformers runs it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use minijinja::machinery::{CodeGenerator, Vm, WhitespaceConfig, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{
    AutoEscape, Environment, Error as Failure, ErrorKind, FormatStyle, State, Value, format_filter,
};
use serde::Serialize;

use super::bounds::{self, Budget, invalid};
use super::python::{to_json, write_str};
use crate::error::{Error, Result};

/// Steps that a template may take. The largest published ones take a few thousand for each message.
const FUEL: u64 = 20_000_000;
/// The longest template, in bytes.
const MAX_SOURCE: usize = 1 << 20;
/// Room for whatever nests in a template of the longest kind.
const STACK: usize = 256 << 20;
const NAME: &str = "chat";

type Outcome<T> = std::result::Result<T, Failure>;

/// A chat template.
///
/// Rendering is limited in time, text and nesting; a template that wants more is an error.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
}

impl ChatTemplate {
    /// Checks the syntax of a template.
    pub fn new(source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            let message = format!("{} bytes, and {MAX_SOURCE} is the most", source.len());
            return Err(Error::argument("chat_template", message));
        }
        let source = without_generation_tags(source);
        stacker::grow(STACK, || compile(&source).map(|_| ())).map_err(template_error)?;
        Ok(Self { source: source.into() })
    }

    /// The text for these variables: `messages`, `add_generation_prompt`, `tools`, `bos_token`, ...
    pub fn render(&self, context: impl Serialize) -> Result<String> {
        let context = Value::from_serialize(context);
        stacker::grow(STACK, || render(&self.source, context)).map_err(template_error)
    }

    /// Whether the source has this text.
    pub(super) fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }
}

fn template_error(error: Failure) -> Error {
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Error::argument(
        "chat_template",
        match error.line() {
            Some(line) => format!("line {line}: {message}"),
            None => message,
        },
    )
}

type Compiled<'a> =
    (minijinja::machinery::Instructions<'a>, BTreeMap<&'a str, minijinja::machinery::Instructions<'a>>);

fn compile(source: &str) -> Outcome<Compiled<'_>> {
    let whitespace =
        WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let template = parse(source, NAME, SyntaxConfig, whitespace)?;
    let template = bounds::bounded(&template)?;
    let mut code = CodeGenerator::new(NAME, source);
    code.compile_stmt(&template);
    Ok(code.finish())
}

fn render(source: &str, context: Value) -> Outcome<String> {
    let (instructions, blocks) = compile(source)?;
    let environment = environment();
    let mut text = String::new();
    let mut out = make_string_output(&mut text);
    Vm::new(&environment).eval(&instructions, context, &blocks, &mut out, AutoEscape::None)?;
    Ok(text)
}

/// The filters, functions and methods that transformers gives to templates, within one budget.
fn environment<'a>() -> Environment<'a> {
    let budget = Arc::new(Budget::new());
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    let b = budget.clone();
    environment.set_formatter(move |out, _, value| {
        let text = match value.as_str() {
            Some(_) => b.checked(value.clone())?,
            None => Value::from(b.text(|out| write_str(out, value))?),
        };
        Ok(out.write_str(text.as_str().unwrap_or_default())?)
    });
    let b = budget.clone();
    environment.set_unknown_method_callback(move |state, value, method, args| {
        call_method(&b, state, value, method, args)
    });
    add_bounds(&mut environment, &budget);
    let b = budget.clone();
    environment.add_filter("tojson", move |value: &Value, options: Kwargs| {
        b.text(|out| to_json(out, value, options)).map(Value::from_safe_string)
    });
    let b = budget.clone();
    environment.add_filter("string", move |value: &Value| b.text(|out| write_str(out, value)));
    let b = budget.clone();
    environment.add_filter(
        "join",
        move |items: Value, separator: Option<String>, options: Kwargs| -> Outcome<String> {
            let separator = match separator {
                Some(separator) => separator,
                None => options.get::<Option<String>>("d")?.unwrap_or_default(),
            };
            let items = match options.get::<Option<String>>("attribute")? {
                Some(name) => {
                    items.try_iter()?.map(|item| item.get_attr(&name)).collect::<Outcome<Value>>()?
                }
                None => items,
            };
            options.assert_all_used()?;
            b.join(&items, &separator)
        },
    );
    let b = budget.clone();
    environment.add_filter(
        "replace",
        move |text: &str, from: &str, to: &str, count: Option<i64>| -> Outcome<_> {
            b.replace(text, from, to, count)
        },
    );
    let b = budget.clone();
    environment.add_filter("format", move |format: &str, args: Rest<Value>| -> Outcome<String> {
        b.check_format(format, &args)?;
        format_filter(FormatStyle::Printf, format, &args)
    });
    environment.add_test("iterable", |value: &Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
    });
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment
        .add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_function("raise_exception", raise_exception);
    let b = budget.clone();
    environment.add_function("strftime_now", move |format: &str| strftime_now(&b, format));
    // It writes out all variables, and transformers has none.
    environment.remove_global("debug");
    environment
}

/// What the checks of a template call.
fn add_bounds(environment: &mut Environment, budget: &Arc<Budget>) {
    let b = budget.clone();
    environment.add_function(bounds::TICK, move || b.tick());
    let b = budget.clone();
    environment.add_function(bounds::CHECKED, move |value: Value| b.checked(value));
    let b = budget.clone();
    environment.add_function(bounds::HELD, move |value: Value| b.held(value));
    environment.add_function(bounds::FACTOR, bounds::factor);
    environment.add_function(bounds::WIDTH, bounds::width);
    let b = budget.clone();
    environment.add_function(bounds::CONCAT, move |left: &Value, right: &Value| {
        b.text(|out| write_str(out, left).and_then(|()| write_str(out, right)))
    });
    let b = budget.clone();
    environment
        .add_function(bounds::REMAINDER, move |left: &Value, right: &Value| remainder(&b, left, right));
    let b = budget.clone();
    environment.add_function(bounds::TEXT, move |value: Value| match value.kind() {
        ValueKind::String | ValueKind::Undefined => Ok(value),
        _ => b.text(|out| write_str(out, &value)).map(Value::from),
    });
}

/// `%` of Python, of numbers and for formats.
fn remainder(budget: &Budget, left: &Value, right: &Value) -> Outcome<Value> {
    if let Some(format) = left.as_str() {
        let args: Vec<Value> = match right.kind() {
            ValueKind::Seq => right.try_iter()?.collect(),
            _ => vec![right.clone()],
        };
        budget.check_format(format, &args)?;
        return format_filter(FormatStyle::Printf, format, &args).map(Value::from);
    }
    if let (Ok(x), Ok(y)) = (i64::try_from(left.clone()), i64::try_from(right.clone()))
        && left.is_integer()
        && right.is_integer()
    {
        let remainder = x.checked_rem(y).ok_or_else(|| invalid(format!("{x} % {y}")))?;
        return Ok(Value::from(if remainder != 0 && (remainder < 0) != (y < 0) {
            remainder + y
        } else {
            remainder
        }));
    }
    match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (Ok(x), Ok(y)) if y != 0.0 => Ok(Value::from(x - y * (x / y).floor())),
        _ => Err(invalid(format!("{} % {}", left.kind(), right.kind()))),
    }
}

/// Methods of Python's types.
fn call_method(
    budget: &Budget,
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Outcome<Value> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
    };
    match method {
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            budget.replace(text, from, to, count).map(Value::from)
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            budget.join(items, text).map(Value::from)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "format" => {
            budget.check_format(text, args)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn raise_exception(message: String) -> Outcome<Value> {
    Err(Failure::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(budget: &Budget, format: &str) -> Outcome<String> {
    budget.check_format(format, &[])?;
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => Err(invalid(format!("strftime format `{format}`"))),
    }
}

/// `{% generation %}` as `{% if true %}`, and its end: transformers has this tag to find what an
/// assistant said, and it changes no text.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        out.push_str(before);
        out.push_str(&tag[..tag.len() - name.len()]);
        rest = name;
        for (tag, plain) in [("generation", "if true"), ("endgeneration", "endif")] {
            if let Some(after) = name.strip_prefix(tag)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(plain);
                rest = after;
            }
        }
    }
    out + rest
}
