//! Reads a preprocessed Metal source and rewrites it as C++: attributes and address spaces go, threadgroup variables
//! come from the runtime, functions that differ in address spaces alone are kept once, explicit instantiations become
//! a table of names. Lines stay where they are.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// A source as C++, and what a launch needs to know of it.
#[derive(Debug, Clone)]
pub struct Program {
    pub text: String,
    pub kernels: Vec<KernelSource>,
    /// `host_name` to the function with its template arguments.
    pub host_names: BTreeMap<String, String>,
    pub constants: Vec<FunctionConstant>,
}

#[derive(Debug, Clone)]
pub struct KernelSource {
    pub name: String,
    pub parameters: Vec<Parameter>,
}

/// One parameter of a kernel.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub name: String,
    /// Without address space, `const`, `*` and `&`.
    pub ty: String,
    pub pointer: bool,
    pub reference: bool,
    pub constant: bool,
    pub threadgroup: bool,
    /// Attributes with their arguments, for example `("buffer", "0")`.
    pub attributes: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct FunctionConstant {
    pub name: String,
    pub index: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Word,
    Text,
    Punctuation,
    /// White space, line markers and pragmas.
    Blank,
}

#[derive(Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
}

const SPACES: [&str; 5] = ["device", "constant", "thread", "threadgroup", "kernel"];

/// Reads the output of the C preprocessor.
pub fn read(flat: &str) -> Result<Program, String> {
    let tokens = tokenize(flat);
    let code: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i].kind != Kind::Blank).collect();
    let mut reader = Reader {
        out: tokens.iter().map(|t| t.text.to_owned()).collect(),
        tokens: &tokens,
        code,
        kernels: Vec::new(),
        host_names: BTreeMap::new(),
        constants: Vec::new(),
    };
    let end = reader.code.len();
    reader.scope(0..end)?;
    reader.strip();
    Ok(Program {
        text: reader.out.concat(),
        kernels: reader.kernels,
        host_names: reader.host_names,
        constants: reader.constants,
    })
}

fn tokenize(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut line_start = true;
    while at < bytes.len() {
        let start = at;
        let c = bytes[at];
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
        let kind = if c.is_ascii_whitespace() {
            while at < bytes.len() && bytes[at].is_ascii_whitespace() {
                line_start |= bytes[at] == b'\n';
                at += 1;
            }
            Kind::Blank
        } else if c == b'#' && line_start {
            while at < bytes.len() && bytes[at] != b'\n' {
                at += 1;
            }
            Kind::Blank
        } else if word(c) || (c == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)) {
            let number = c.is_ascii_digit() || c == b'.';
            at += 1;
            while at < bytes.len() {
                let exponent = number
                    && matches!(bytes[at], b'+' | b'-')
                    && matches!(bytes[at - 1], b'e' | b'E' | b'p' | b'P')
                    && !(bytes[at - 1].eq_ignore_ascii_case(&b'e') && text[start..].starts_with("0x"));
                if !(word(bytes[at]) || (number && bytes[at] == b'.') || exponent) {
                    break;
                }
                at += 1;
            }
            Kind::Word
        } else if c == b'"' || c == b'\'' {
            at += 1;
            while at < bytes.len() && bytes[at] != c {
                at += 1 + usize::from(bytes[at] == b'\\');
            }
            at = (at + 1).min(bytes.len());
            Kind::Text
        } else {
            at += 1;
            Kind::Punctuation
        };
        if kind != Kind::Blank {
            line_start = false;
        }
        tokens.push(Token { kind, text: &text[start..at] });
    }
    tokens
}

struct Reader<'a> {
    tokens: &'a [Token<'a>],
    /// Indices of the tokens that are not blank; positions below are positions in here.
    code: Vec<usize>,
    out: Vec<String>,
    kernels: Vec<KernelSource>,
    host_names: BTreeMap<String, String>,
    constants: Vec<FunctionConstant>,
}

impl<'a> Reader<'a> {
    fn text(&self, at: usize) -> &'a str {
        self.code.get(at).map_or("", |&i| self.tokens[i].text)
    }

    fn kind(&self, at: usize) -> Kind {
        self.code.get(at).map_or(Kind::Blank, |&i| self.tokens[i].kind)
    }

    fn line_of(&self, at: usize) -> String {
        self.code[at.saturating_sub(6)..(at + 6).min(self.code.len())]
            .iter()
            .map(|&i| self.tokens[i].text)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The position of the bracket that closes the one at `at`.
    fn closing(&self, at: usize) -> Result<usize, String> {
        let mut depth = 0i32;
        for i in at..self.code.len() {
            match self.text(i) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(i);
            }
        }
        Err(format!("a bracket is never closed near: {}", self.line_of(at)))
    }

    /// The position of the `>` that closes the `<` at `at`.
    fn closing_angle(&self, at: usize) -> Result<usize, String> {
        let mut depth = 0i32;
        let mut i = at;
        while i < self.code.len() {
            match self.text(i) {
                "<" => depth += 1,
                ">" => depth -= 1,
                "(" | "[" | "{" => i = self.closing(i)?,
                ";" => break,
                _ => {}
            }
            if depth == 0 {
                return Ok(i);
            }
            i += 1;
        }
        Err(format!("a template list is never closed near: {}", self.line_of(at)))
    }

    fn is_attribute(&self, at: usize) -> bool {
        self.text(at) == "[" && self.text(at + 1) == "[" && self.code[at] + 1 == self.code[at + 1]
    }

    fn erase(&mut self, range: Range<usize>) {
        for at in range {
            self.out[self.code[at]].clear();
        }
    }

    /// Declarations of a namespace or class.
    fn scope(&mut self, range: Range<usize>) -> Result<(), String> {
        let mut signatures = HashSet::new();
        let mut at = range.start;
        while at < range.end {
            at = self.declaration(at, range.end, &mut signatures)?;
        }
        Ok(())
    }

    /// One declaration that begins at `start`; returns where the next begins.
    fn declaration(
        &mut self,
        start: usize,
        end: usize,
        signatures: &mut HashSet<String>,
    ) -> Result<usize, String> {
        if self.text(start) == ";" {
            return Ok(start + 1);
        }
        if matches!(self.text(start), "public" | "private" | "protected") && self.text(start + 1) == ":" {
            return Ok(start + 2);
        }
        let (mut parameters, mut initializers) = (None, None);
        let (mut class, mut space, mut value, mut is_kernel) = (None, false, false, false);
        let mut attributes = Vec::new();
        let mut at = start;
        while at < end {
            match self.text(at) {
                "template" if self.text(at + 1) == "<" => at = self.closing_angle(at + 1)?,
                "[" if self.is_attribute(at) => {
                    let close = self.closing(at)?;
                    attributes.extend(self.attributes(at..close + 1));
                    at = close;
                }
                "alignas" | "__attribute__" | "decltype" if self.text(at + 1) == "(" => {
                    at = self.closing(at + 1)?;
                }
                "operator" => {
                    at += 1;
                    if self.text(at) == "(" {
                        at += 1;
                    } else {
                        while self.text(at + 1) != "(" && at < end {
                            at += 1;
                        }
                    }
                }
                "(" => {
                    if !value && initializers.is_none() {
                        parameters = Some(at);
                    }
                    at = self.closing(at)?;
                }
                "[" => at = self.closing(at)?,
                "class" | "struct" | "union" | "enum" if parameters.is_none() => {
                    class = class.or(Some(self.text(at)));
                }
                "namespace" | "extern" => space = true,
                "kernel" => is_kernel = true,
                "=" => value = true,
                ":" if parameters.is_some() && self.text(at + 1) != ":" && self.text(at - 1) != ":" => {
                    initializers = initializers.or(Some(at));
                }
                ";" => {
                    self.plain(start..at + 1, &attributes)?;
                    return Ok(at + 1);
                }
                "{" => {
                    let close = self.closing(at)?;
                    let member = initializers.is_some()
                        && (self.kind(at - 1) == Kind::Word || self.text(at - 1) == ">");
                    if space && parameters.is_none() {
                        self.scope(at + 1..close)?;
                        return Ok(close + 1);
                    } else if value || member || (parameters.is_none() && class.is_none()) {
                        at = close;
                    } else if parameters.is_none() {
                        if !signatures.insert(self.signature(start..at)) {
                            // A specialization for another address space.
                            let end = close + 1 + usize::from(self.text(close + 1) == ";");
                            self.erase(start..end);
                            return Ok(end);
                        }
                        if class != Some("enum") {
                            self.scope(at + 1..close)?;
                        }
                        at = close;
                    } else {
                        is_kernel |= attributes.iter().any(|a| a.0 == "kernel");
                        let signature = start..initializers.unwrap_or(at);
                        if !signatures.insert(self.signature(signature)) {
                            self.erase(start..close + 1);
                            return Ok(close + 1);
                        }
                        if let (true, Some(open)) = (is_kernel, parameters) {
                            let parameters = self.parameters(open)?;
                            self.kernels
                                .push(KernelSource { name: self.text(open - 1).to_owned(), parameters });
                        }
                        self.body(at + 1..close)?;
                        return Ok(close + 1);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        Ok(end)
    }

    /// A declaration without a body: an instantiation, a function constant, a variable.
    fn plain(&mut self, range: Range<usize>, attributes: &[(String, String)]) -> Result<(), String> {
        let attribute = |name: &str| attributes.iter().find(|a| a.0 == name).map(|a| a.1.as_str());
        if self.text(range.start) == "template" && self.text(range.start + 1) != "<" {
            if let Some(name) = attribute("host_name") {
                let call = self.instantiated(range.clone())?;
                let name = name.split('"').skip(1).step_by(2).collect::<String>();
                self.host_names.insert(name, call);
            }
            self.erase(range);
            return Ok(());
        }
        if let Some(index) = attribute("function_constant") {
            let name = (range.start..range.end)
                .take_while(|&i| !self.is_attribute(i))
                .filter(|&i| self.kind(i) == Kind::Word)
                .last()
                .map(|i| self.text(i).to_owned())
                .ok_or("a function constant without a name")?;
            let index = index.parse().map_err(|_| format!("function_constant({index}) is no number"))?;
            self.constants.push(FunctionConstant { name, index });
        }
        Ok(())
    }

    /// `f<args>` of `template [[..]] decltype(f<args>) f<args>;` or `template [[..]] void f<args>(..);`.
    fn instantiated(&self, range: Range<usize>) -> Result<String, String> {
        let mut at = range.start + 1;
        while at < range.end {
            if self.is_attribute(at) {
                at = self.closing(at)?;
            } else if self.text(at) == "decltype" {
                let close = self.closing(at + 1)?;
                return Ok(self.join(at + 2..close));
            } else if self.text(at) == "<" {
                let close = self.closing_angle(at)?;
                return Ok(self.join(at - 1..close + 1));
            }
            at += 1;
        }
        Err(format!("an instantiation without template arguments: {}", self.join(range)))
    }

    /// The code of a range on one line, without address spaces.
    fn join(&self, range: Range<usize>) -> String {
        let mut text = String::new();
        let mut last = None;
        for at in range.filter(|&at| !SPACES.contains(&self.text(at))) {
            if last.is_some_and(|last| last + 1 != self.code[at]) {
                text.push(' ');
            }
            text += self.text(at);
            last = Some(self.code[at]);
        }
        text
    }

    /// What tells a function from another but for its address spaces.
    fn signature(&self, range: Range<usize>) -> String {
        let mut words = Vec::new();
        let mut at = range.start;
        while at < range.end {
            if self.is_attribute(at) {
                at = self.closing(at).unwrap_or(range.end);
            } else if !SPACES.contains(&self.text(at)) {
                words.push(self.text(at));
            }
            at += 1;
        }
        words.join(" ")
    }

    /// The attributes between `[[` and `]]`.
    fn attributes(&self, range: Range<usize>) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut at = range.start + 2;
        while at + 2 < range.end {
            if self.kind(at) == Kind::Word {
                let name = self.text(at).to_owned();
                let mut arguments = String::new();
                if self.text(at + 1) == "(" {
                    let close = self.closing(at + 1).unwrap_or(range.end);
                    arguments = self.join(at + 2..close);
                    at = close;
                }
                found.push((name, arguments));
            }
            at += 1;
        }
        found
    }

    fn parameters(&self, open: usize) -> Result<Vec<Parameter>, String> {
        let close = self.closing(open)?;
        let mut found = Vec::new();
        let mut start = open + 1;
        let (mut at, mut angles) = (start, 0);
        while at <= close {
            match self.text(at) {
                "(" | "[" | "{" => at = self.closing(at)?,
                "<" => angles += 1,
                ">" => angles -= 1,
                "," | ")" if angles == 0 => {
                    if at > start {
                        found.push(self.parameter(start..at)?);
                    }
                    start = at + 1;
                }
                _ => {}
            }
            at += 1;
        }
        Ok(found)
    }

    fn parameter(&self, range: Range<usize>) -> Result<Parameter, String> {
        let mut parameter = Parameter {
            name: String::new(),
            ty: String::new(),
            pointer: false,
            reference: false,
            constant: false,
            threadgroup: false,
            attributes: Vec::new(),
        };
        let mut words = Vec::new();
        let mut at = range.start;
        while at < range.end {
            match self.text(at) {
                "[" if self.is_attribute(at) => {
                    let close = self.closing(at)?;
                    parameter.attributes.extend(self.attributes(at..close + 1));
                    at = close;
                }
                "[" => {
                    parameter.pointer = true;
                    at = self.closing(at)?;
                }
                "*" => parameter.pointer = true,
                "&" => parameter.reference = true,
                "const" => parameter.constant = true,
                "constant" => parameter.constant = true,
                "threadgroup" => parameter.threadgroup = true,
                "<" => {
                    let close = self.closing_angle(at)?;
                    words.push(self.join(at..close + 1));
                    at = close;
                }
                word if SPACES.contains(&word) => {}
                word => words.push(word.to_owned()),
            }
            at += 1;
        }
        parameter.name = words.pop().ok_or("a parameter without a name")?;
        parameter.ty = words.concat();
        Ok(parameter)
    }

    /// Threadgroup variables of a function's body.
    fn body(&mut self, range: Range<usize>) -> Result<(), String> {
        for at in range.clone() {
            let begins = at == range.start || matches!(self.text(at - 1), ";" | "{" | "}" | ")");
            if self.text(at) == "threadgroup" && begins {
                self.threadgroup_variable(at)?;
            }
        }
        Ok(())
    }

    fn threadgroup_variable(&mut self, start: usize) -> Result<(), String> {
        // Declarators, split at the commas outside of brackets and template lists; what `=` begins is left out, as
        // threadgroup memory is not initialized.
        let mut ends = Vec::new();
        let mut starts = Vec::new();
        let mut value = None;
        let mut at = start + 1;
        loop {
            match self.text(at) {
                "*" | "&" | "" if value.is_none() => return Ok(()),
                "(" | "[" | "{" => at = self.closing(at)?,
                "<" if value.is_none() => at = self.closing_angle(at)?,
                "=" => value = value.or(Some(at)),
                "," | ";" => {
                    ends.push(value.take().unwrap_or(at));
                    starts.push(at + 1);
                    if self.text(at) == ";" {
                        break;
                    }
                }
                _ => {}
            }
            at += 1;
        }
        let end = at;
        let name_before = |end: usize, from: usize| {
            let mut i = from;
            while i + 1 < end && self.text(i + 1) != "[" {
                if self.text(i + 1) == "<" {
                    i = self.closing_angle(i + 1)?;
                } else {
                    i += 1;
                }
            }
            Ok::<_, String>(i)
        };
        let first = name_before(ends[0], start + 1)?;
        let ty = self.join(start + 1..first);
        let mut text = String::new();
        let mut from = first;
        for (declarator, next) in ends.into_iter().zip(starts) {
            let name = self.text(from);
            let dimensions = self.join(from + 1..declarator);
            text += &format!(
                "typedef {ty} {name}_mtlhost_type{dimensions}; static char {name}_mtlhost_site; \
                 auto& {name} = *({name}_mtlhost_type*)mtlhost_threadgroup(&{name}_mtlhost_site, \"{name}\", \
                 sizeof({name}_mtlhost_type), alignof({name}_mtlhost_type));"
            );
            from = next;
        }
        self.erase(start..end + 1);
        self.out[self.code[start]] = text;
        Ok(())
    }

    /// Takes away attributes, address spaces and pragmas.
    fn strip(&mut self) {
        let mut at = 0;
        while at < self.code.len() {
            if at + 1 < self.code.len() && self.is_attribute(at) {
                let close = self.closing(at).unwrap_or(at);
                self.erase(at..close + 1);
                at = close;
            } else if SPACES.contains(&self.out[self.code[at]].as_str()) {
                self.out[self.code[at]].clear();
            }
            at += 1;
        }
        for (token, out) in self.tokens.iter().zip(&mut self.out) {
            if token.kind == Kind::Blank && token.text.starts_with("#pragma") {
                out.clear();
            }
        }
    }
}
