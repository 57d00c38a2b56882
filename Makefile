# The two commands of a fresh machine are `make demo` and `make test`; both run `deps` first.

CARGO ?= cargo
CHECKPOINT := assets/tiny-qwen3
DEMO := target/demo

# The folder of the generators of reference checkpoints.
ORACLE ?= ../shared/oracle

# The kernels without MLX.
BARE := --manifest-path tests/bare/Cargo.toml --target-dir target/bare --locked

.PHONY: deps demo test test-large test-sanitize test-emulated fuzz lint doc bench parity

deps: ## Installs what the native build needs, where it is missing
	@scripts/deps

demo: deps ## Builds MLX, ports the bundled checkpoint, proves it, generates text
	$(CARGO) build --release
	target/release/mlxport port $(CHECKPOINT) --oracle $(CHECKPOINT)/oracle --out $(DEMO)
	target/release/mlxport generate --model $(DEMO)/model --prompt "The " --raw --max-tokens 48

test: deps ## Every test; timings decide none
	$(CARGO) test
	$(CARGO) test $(BARE)
	tests/linking/run

test-large: deps ## Memory that a checkpoint of 1 GB takes to load and to convert
	$(CARGO) test --release --test large -- --ignored --nocapture

test-sanitize: deps ## The kernels' tests under AddressSanitizer, which must catch a planted overflow first
	scripts/test-sanitize

test-emulated: deps ## The kernels' tests on a CPU with AVX-512 or AMX, emulated by Bochs: see scripts/test-emulated
	scripts/test-emulated $(CPU)

fuzz: deps ## Five minutes of changed files for each reader of files: see scripts/fuzz. Needs cargo-fuzz
	scripts/fuzz $(TARGET)

lint: deps ## Formatting, clippy and documentation, warnings denied
	$(CARGO) fmt --check
	cd tests/bare && $(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy $(BARE) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps

doc: deps ## The library's documentation, in target/doc
	$(CARGO) doc --no-deps

bench: deps ## Speed of the kernels and of the bundled checkpoint on this machine, into docs/performance.md
	$(CARGO) bench --bench roofline --bench matmul --bench quantized_matmul --bench attention --bench rows --bench scan --bench model \
	  -- --warm-up-time 1 --measurement-time 2
	$(CARGO) bench --bench ratios
	$(CARGO) bench --bench report
	$(CARGO) build --release
	target/release/mlxport bench model --model $(CHECKPOINT) --prompt-tokens 512 --generate-tokens 128

parity: deps ## Holds every architecture to mlx-lm and transformers; writes docs/models.md. Needs Python and ORACLE
	$(CARGO) build --release
	scripts/parity "$(ORACLE)"
