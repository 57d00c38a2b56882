//! What a template may use: text, items, nesting and time.
//!
//! The engine counts instructions, but one instruction can double a text. So the parsed template is
//! copied with a check around everything that makes values, and a look at the clock in every loop and
//! macro. Names with a space in them can't be written in a template.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, BinOpKind, CallArg, Expr, Spanned, Stmt};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::python::write_str;

/// The longest text, in bytes.
const MAX_TEXT: usize = 16 << 20;
/// What all texts that a template makes are together, in bytes, and all of their items at 64 bytes each.
const MAX_TOTAL: usize = 1 << 30;
const MAX_ITEMS: usize = 1 << 18;
/// The texts within one value, in bytes, each as often as it is there.
const MAX_WITHIN: usize = 64 << 20;
/// Lists within lists, and expressions within expressions.
pub(super) const MAX_DEPTH: usize = 200;
/// The largest factor, which times [`MAX_ITEMS`] is a length.
const MAX_FACTOR: i64 = 1 << 32;
/// The largest argument of a filter that takes a width or a count.
const MAX_WIDTH: i64 = 1 << 16;
const TIME: Duration = Duration::from_secs(10);

pub(super) const TICK: &str = "the clock";
pub(super) const CHECKED: &str = "a value";
pub(super) const HELD: &str = "an attribute";
pub(super) const FACTOR: &str = "a factor";
pub(super) const WIDTH: &str = "a width";
pub(super) const CONCAT: &str = "a concatenation";
pub(super) const REMAINDER: &str = "a remainder";
pub(super) const TEXT: &str = "a text";

/// Filters whose numbers say how much they make.
const SIZED: [&str; 4] = ["batch", "indent", "round", "slice"];

/// Filters that take any value for its text.
const TEXTUAL: [&str; 8] = ["capitalize", "escape", "indent", "lower", "replace", "title", "trim", "upper"];

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// What one rendering has used.
#[derive(Debug)]
pub(super) struct Budget {
    end: Instant,
    spent: AtomicUsize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { end: Instant::now() + TIME, spent: AtomicUsize::new(0) }
    }

    pub(super) fn tick(&self) -> Result<(), Error> {
        if Instant::now() < self.end {
            return Ok(());
        }
        Err(invalid(format!("takes longer than {} seconds", TIME.as_secs())))
    }

    fn spend(&self, bytes: usize) -> Result<(), Error> {
        self.tick()?;
        if self.spent.fetch_add(bytes, Ordering::Relaxed) < MAX_TOTAL - bytes.min(MAX_TOTAL) {
            return Ok(());
        }
        Err(invalid(format!("makes more than {} MiB of text", MAX_TOTAL >> 20)))
    }

    /// `value`, unless it is too long or too deep, or would be as a text.
    pub(super) fn checked(&self, value: Value) -> Result<Value, Error> {
        self.weigh(&value)?;
        Ok(value)
    }

    /// The same of what an attribute of a namespace becomes: nothing that the namespace may be in.
    pub(super) fn held(&self, value: Value) -> Result<Value, Error> {
        if self.weigh(&value)?.namespaces > 0 {
            return Err(invalid("a namespace within a namespace"));
        }
        Ok(value)
    }

    fn weigh(&self, value: &Value) -> Result<Weight, Error> {
        let mut weight = Weight::default();
        if let Some(text) = value.as_str() {
            if text.len() > MAX_TEXT {
                return Err(too_long());
            }
            self.spend(text.len())?;
        } else {
            let items = value.len().unwrap_or(0);
            if items > MAX_ITEMS {
                return Err(invalid(format!("a list of {items} items")));
            }
            self.spend(items * 64)?;
            self.add(value, 0, &mut weight)?;
        }
        Ok(weight)
    }

    fn add(&self, value: &Value, depth: usize, weight: &mut Weight) -> Result<(), Error> {
        weight.items += 1;
        if depth > MAX_DEPTH {
            return Err(invalid(format!("lists more than {MAX_DEPTH} deep")));
        }
        if weight.items > MAX_ITEMS || weight.text > MAX_WITHIN {
            let limits = format!("{MAX_ITEMS} items or {} MiB", MAX_WITHIN >> 20);
            return Err(invalid(format!("lists of more than {limits}")));
        }
        if weight.items.is_multiple_of(1 << 10) {
            self.tick()?;
        }
        match value.kind() {
            ValueKind::String => weight.text += value.as_str().map_or(0, str::len),
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter().into_iter().flatten() {
                    self.add(&item, depth + 1, weight)?;
                }
            }
            ValueKind::Map => {
                let namespace = value.as_object().is_some_and(|o| o.type_name().ends_with("Namespace"));
                weight.namespaces += usize::from(namespace);
                for key in value.try_iter().into_iter().flatten() {
                    self.add(&key, depth + 1, weight)?;
                    self.add(&value.get_item(&key).unwrap_or_default(), depth + 1, weight)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a format has widths and precisions of few digits, and room for its values wherever it may
    /// have them.
    pub(super) fn check_format(&self, format: &str, args: &[Value]) -> Result<(), Error> {
        if format.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4) {
            return Err(invalid("a format with a width of more than four digits"));
        }
        let places = format.bytes().filter(|byte| b"%{".contains(byte)).count();
        for arg in args {
            let mut weight = Weight::default();
            self.add(arg, 0, &mut weight)?;
            if places.saturating_mul(weight.text + weight.items) > MAX_WITHIN {
                return Err(too_long());
            }
        }
        Ok(())
    }

    /// The text that `write` writes.
    pub(super) fn text(
        &self,
        write: impl FnOnce(&mut Bounded) -> Result<(), Error>,
    ) -> Result<String, Error> {
        let mut out = Bounded { text: String::new(), full: false };
        match write(&mut out) {
            Err(_) if out.full => return Err(too_long()),
            written => written?,
        }
        self.spend(out.text.len())?;
        Ok(out.text)
    }

    pub(super) fn replace(
        &self,
        text: &str,
        from: &str,
        to: &str,
        count: Option<i64>,
    ) -> Result<String, Error> {
        let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
        self.text(|out| {
            let mut rest = 0;
            for (at, found) in text.match_indices(from).take(count) {
                fmt::Write::write_str(out, &text[rest..at])?;
                fmt::Write::write_str(out, to)?;
                rest = at + found.len();
            }
            Ok(fmt::Write::write_str(out, &text[rest..])?)
        })
    }

    pub(super) fn join(&self, items: &Value, separator: &str) -> Result<String, Error> {
        self.text(|out| {
            for (i, item) in items.try_iter()?.enumerate() {
                if i > 0 {
                    fmt::Write::write_str(out, separator)?;
                }
                write_str(out, &item)?;
            }
            Ok(())
        })
    }
}

fn too_long() -> Error {
    invalid(format!("a text of more than {} MiB", MAX_TEXT >> 20))
}

/// What is within a value.
#[derive(Debug, Default)]
struct Weight {
    items: usize,
    text: usize,
    namespaces: usize,
}

/// A text that is written up to the limit.
pub(super) struct Bounded {
    text: String,
    full: bool,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.full |= self.text.len() + text.len() > MAX_TEXT;
        if self.full {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// A number that something is multiplied by, or any other value.
pub(super) fn factor(value: Value) -> Result<Value, Error> {
    at_most(value, MAX_FACTOR)
}

pub(super) fn width(value: Value) -> Result<Value, Error> {
    at_most(value, MAX_WIDTH)
}

fn at_most(value: Value, limit: i64) -> Result<Value, Error> {
    if value.is_integer() && !i64::try_from(value.clone()).is_ok_and(|n| n <= limit) {
        return Err(invalid(format!("{value} is too large")));
    }
    Ok(value)
}

/// A copy of a template with the checks.
pub(super) fn bounded<'a>(template: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    Copy { depth: 0 }.stmt(template)
}

struct Copy {
    depth: usize,
}

impl Copy {
    fn stmts<'a>(&mut self, all: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>, Error> {
        all.iter().map(|one| self.stmt(one)).collect()
    }

    /// Statements that are repeated.
    fn body<'a>(&mut self, all: &[Stmt<'a>], span: Span) -> Result<Vec<Stmt<'a>>, Error> {
        let call = Spanned::new(ast::Call { expr: var(TICK, span), args: Vec::new() }, span);
        let mut body = vec![Stmt::Do(Spanned::new(ast::Do { call }, span))];
        body.extend(self.stmts(all)?);
        Ok(body)
    }

    fn stmt<'a>(&mut self, stmt: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
        self.deeper(|copy| copy.stmt_here(stmt))
    }

    fn deeper<T>(&mut self, copy: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth > MAX_DEPTH {
            return Err(invalid(format!("expressions more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let copied = copy(self);
        self.depth -= 1;
        copied
    }

    fn stmt_here<'a>(&mut self, stmt: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
        Ok(match stmt {
            Stmt::Template(s) => {
                let children = self.stmts(&s.children)?;
                Stmt::Template(Spanned::new(ast::Template { children }, s.span()))
            }
            Stmt::EmitExpr(s) => {
                let expr = self.expr(&s.expr)?;
                Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, s.span()))
            }
            Stmt::EmitRaw(s) => {
                let expr = Expr::Const(Spanned::new(ast::Const { value: Value::from(s.raw) }, s.span()));
                Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, s.span()))
            }
            Stmt::ForLoop(s) => {
                let copy = ast::ForLoop {
                    target: self.target(&s.target)?,
                    iter: self.expr(&s.iter)?,
                    filter_expr: s.filter_expr.as_ref().map(|e| self.expr(e)).transpose()?,
                    recursive: s.recursive,
                    body: self.body(&s.body, s.span())?,
                    else_body: self.stmts(&s.else_body)?,
                };
                Stmt::ForLoop(Spanned::new(copy, s.span()))
            }
            Stmt::IfCond(s) => {
                let copy = ast::IfCond {
                    expr: self.expr(&s.expr)?,
                    true_body: self.stmts(&s.true_body)?,
                    false_body: self.stmts(&s.false_body)?,
                };
                Stmt::IfCond(Spanned::new(copy, s.span()))
            }
            Stmt::WithBlock(s) => {
                let assignments = s.assignments.iter();
                let assignments = assignments.map(|(to, from)| Ok((self.target(to)?, self.expr(from)?)));
                let assignments = assignments.collect::<Result<_, Error>>()?;
                let body = self.stmts(&s.body)?;
                Stmt::WithBlock(Spanned::new(ast::WithBlock { assignments, body }, s.span()))
            }
            Stmt::Set(s) => {
                let expr = match has_attribute(&s.target) {
                    true => called(HELD, vec![self.bare(&s.expr)?], s.span()),
                    false => self.expr(&s.expr)?,
                };
                let copy = ast::Set { target: self.target(&s.target)?, expr };
                Stmt::Set(Spanned::new(copy, s.span()))
            }
            Stmt::SetBlock(s) => {
                let copy = ast::SetBlock {
                    target: self.target(&s.target)?,
                    filter: s.filter.as_ref().map(|e| self.bare(e)).transpose()?,
                    body: self.stmts(&s.body)?,
                };
                Stmt::SetBlock(Spanned::new(copy, s.span()))
            }
            Stmt::AutoEscape(s) => {
                let copy = ast::AutoEscape { enabled: self.expr(&s.enabled)?, body: self.stmts(&s.body)? };
                Stmt::AutoEscape(Spanned::new(copy, s.span()))
            }
            Stmt::FilterBlock(s) => {
                let copy = ast::FilterBlock { filter: self.bare(&s.filter)?, body: self.stmts(&s.body)? };
                Stmt::FilterBlock(Spanned::new(copy, s.span()))
            }
            Stmt::Macro(s) => Stmt::Macro(Spanned::new(self.macro_(s, s.span())?, s.span())),
            Stmt::CallBlock(s) => {
                let declared = &s.macro_decl;
                let copy = ast::CallBlock {
                    call: self.call(&s.call, s.call.span())?,
                    macro_decl: Spanned::new(self.macro_(declared, declared.span())?, declared.span()),
                };
                Stmt::CallBlock(Spanned::new(copy, s.span()))
            }
            Stmt::Do(s) => {
                let call = self.call(&s.call, s.call.span())?;
                Stmt::Do(Spanned::new(ast::Do { call }, s.span()))
            }
            Stmt::Continue(s) => Stmt::Continue(Spanned::new(ast::Continue, s.span())),
            Stmt::Break(s) => Stmt::Break(Spanned::new(ast::Break, s.span())),
            _ => return Err(invalid("a chat template has no other templates")),
        })
    }

    fn macro_<'a>(&mut self, s: &ast::Macro<'a>, span: Span) -> Result<ast::Macro<'a>, Error> {
        Ok(ast::Macro {
            name: s.name,
            args: s.args.iter().map(|arg| self.target(arg)).collect::<Result<_, _>>()?,
            defaults: s.defaults.iter().map(|e| self.expr(e)).collect::<Result<_, _>>()?,
            body: self.body(&s.body, span)?,
        })
    }

    /// What is assigned to.
    fn target<'a>(&mut self, expr: &Expr<'a>) -> Result<Expr<'a>, Error> {
        match expr {
            Expr::List(s) => {
                let items = s.items.iter().map(|item| self.target(item)).collect::<Result<_, _>>()?;
                Ok(Expr::List(Spanned::new(ast::List { items }, s.span())))
            }
            _ => self.bare(expr),
        }
    }

    /// An expression whose value is checked if it is a new one, or took time.
    fn expr<'a>(&mut self, expr: &Expr<'a>) -> Result<Expr<'a>, Error> {
        let copy = self.bare(expr)?;
        let made = match expr {
            Expr::List(_) | Expr::Map(_) => expr.as_const().is_none(),
            Expr::BinOp(s) => !matches!(s.op, BinOpKind::ScAnd | BinOpKind::ScOr),
            Expr::Filter(_) | Expr::Call(_) | Expr::Slice(_) | Expr::Compare(_) | Expr::Test(_) => true,
            _ => false,
        };
        Ok(if made { called(CHECKED, vec![copy], expr.span()) } else { copy })
    }

    fn bare<'a>(&mut self, expr: &Expr<'a>) -> Result<Expr<'a>, Error> {
        self.deeper(|copy| copy.bare_here(expr))
    }

    fn bare_here<'a>(&mut self, expr: &Expr<'a>) -> Result<Expr<'a>, Error> {
        Ok(match expr {
            Expr::Var(s) => var(s.id, s.span()),
            Expr::Const(s) => Expr::Const(Spanned::new(ast::Const { value: s.value.clone() }, s.span())),
            Expr::Slice(s) => {
                let copy = ast::Slice {
                    expr: self.expr(&s.expr)?,
                    start: s.start.as_ref().map(|e| self.expr(e)).transpose()?,
                    stop: s.stop.as_ref().map(|e| self.expr(e)).transpose()?,
                    step: s.step.as_ref().map(|e| self.expr(e)).transpose()?,
                };
                Expr::Slice(Spanned::new(copy, s.span()))
            }
            Expr::UnaryOp(s) => {
                let negative = matches!(s.op, ast::UnaryOpKind::Neg);
                let op = if negative { ast::UnaryOpKind::Neg } else { ast::UnaryOpKind::Not };
                let copy = ast::UnaryOp { op, expr: self.expr(&s.expr)? };
                Expr::UnaryOp(Spanned::new(copy, s.span()))
            }
            Expr::BinOp(s) => {
                let (mut left, mut right) = (self.expr(&s.left)?, self.expr(&s.right)?);
                match s.op {
                    BinOpKind::Concat => return Ok(called(CONCAT, vec![left, right], s.span())),
                    BinOpKind::Rem => return Ok(called(REMAINDER, vec![left, right], s.span())),
                    BinOpKind::Mul => {
                        left = called(FACTOR, vec![left], s.span());
                        right = called(FACTOR, vec![right], s.span());
                    }
                    _ => {}
                }
                Expr::BinOp(Spanned::new(ast::BinOp { op: s.op, left, right }, s.span()))
            }
            Expr::Compare(s) => {
                let ops = s.ops.iter();
                let ops = ops.map(|op| Ok(ast::CompareOp { op: op.op, expr: self.expr(&op.expr)? }));
                let ops = ops.collect::<Result<_, Error>>()?;
                Expr::Compare(Spanned::new(ast::Compare { expr: self.expr(&s.expr)?, ops }, s.span()))
            }
            Expr::IfExpr(s) => {
                let copy = ast::IfExpr {
                    test_expr: self.expr(&s.test_expr)?,
                    true_expr: self.expr(&s.true_expr)?,
                    false_expr: s.false_expr.as_ref().map(|e| self.expr(e)).transpose()?,
                };
                Expr::IfExpr(Spanned::new(copy, s.span()))
            }
            Expr::Filter(s) => {
                let guard = SIZED.contains(&s.name).then_some(WIDTH);
                let mut expr = s.expr.as_ref().map(|e| self.expr(e)).transpose()?;
                if TEXTUAL.contains(&s.name) {
                    expr = expr.map(|e| called(TEXT, vec![e], s.span()));
                }
                let args = self.args(&s.args, guard)?;
                Expr::Filter(Spanned::new(ast::Filter { name: s.name, expr, args }, s.span()))
            }
            Expr::Test(s) => {
                let expr = self.expr(&s.expr)?;
                let args = self.args(&s.args, None)?;
                Expr::Test(Spanned::new(ast::Test { name: s.name, expr, args }, s.span()))
            }
            Expr::GetAttr(s) => {
                let expr = self.expr(&s.expr)?;
                Expr::GetAttr(Spanned::new(ast::GetAttr { expr, name: s.name }, s.span()))
            }
            Expr::GetItem(s) => {
                let copy =
                    ast::GetItem { expr: self.expr(&s.expr)?, subscript_expr: self.expr(&s.subscript_expr)? };
                Expr::GetItem(Spanned::new(copy, s.span()))
            }
            Expr::Call(s) => Expr::Call(self.call(s, s.span())?),
            Expr::List(s) => {
                let items = s.items.iter().map(|item| self.expr(item)).collect::<Result<_, _>>()?;
                Expr::List(Spanned::new(ast::List { items }, s.span()))
            }
            Expr::Map(s) => {
                let keys = s.keys.iter().map(|key| self.expr(key)).collect::<Result<_, _>>()?;
                let values = s.values.iter().map(|value| self.expr(value)).collect::<Result<_, _>>()?;
                Expr::Map(Spanned::new(ast::Map { keys, values }, s.span()))
            }
        })
    }

    fn call<'a>(&mut self, s: &ast::Call<'a>, span: Span) -> Result<Spanned<ast::Call<'a>>, Error> {
        let copy = ast::Call { expr: self.bare(&s.expr)?, args: self.args(&s.args, None)? };
        Ok(Spanned::new(copy, span))
    }

    fn args<'a>(&mut self, args: &[CallArg<'a>], guard: Option<&'a str>) -> Result<Vec<CallArg<'a>>, Error> {
        let mut guarded = |e: &Expr<'a>| -> Result<Expr<'a>, Error> {
            let copy = self.expr(e)?;
            Ok(match guard {
                Some(name) => called(name, vec![copy], e.span()),
                None => copy,
            })
        };
        let args = args.iter().map(|arg| {
            Ok(match arg {
                CallArg::Pos(e) => CallArg::Pos(guarded(e)?),
                CallArg::Kwarg(name, e) => CallArg::Kwarg(name, guarded(e)?),
                CallArg::PosSplat(e) => CallArg::PosSplat(guarded(e)?),
                CallArg::KwargSplat(e) => CallArg::KwargSplat(guarded(e)?),
            })
        });
        args.collect()
    }
}

/// Whether an attribute is assigned to, which only namespaces allow.
fn has_attribute(target: &Expr) -> bool {
    match target {
        Expr::List(s) => s.items.iter().any(has_attribute),
        target => matches!(target, Expr::GetAttr(_)),
    }
}

fn var(id: &str, span: Span) -> Expr<'_> {
    Expr::Var(Spanned::new(ast::Var { id }, span))
}

fn called<'a>(name: &'a str, args: Vec<Expr<'a>>, span: Span) -> Expr<'a> {
    let args = args.into_iter().map(CallArg::Pos).collect();
    Expr::Call(Spanned::new(ast::Call { expr: var(name, span), args }, span))
}
