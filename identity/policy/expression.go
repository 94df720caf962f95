package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
)

// The bounds of one expression. Costs are CEL's own units, about one a step of
// the evaluation and one for ten characters of text that it looks at.
const (
	maxExpression = 4096    // characters
	maxEstimate   = 500_000 // worst case with the largest token: some milliseconds
	maxCost       = 500_000 // the same bound again, counted while an expression runs
	cheap         = 50_000  // an estimate so far below that nothing is counted

	// A token is at most 16 KiB, of which base64 takes a quarter and a value's
	// quotes or comma at least one more byte.
	maxTextBytes = 12 << 10
	maxElements  = 6 << 10
)

// The names that an expression reads beside claims. Each is a variable of its
// own, so that a misspelt one is a fault when the configuration is read.
const (
	nameSAN    = "principal.san"
	nameTime   = "request.time"
	nameClaims = "claims"
)

// principalNames are those of type string, in the order of [Input.texts].
var principalNames = []string{"principal.issuer", "principal.subject", nameSAN, "principal.san_type", "principal.type", "principal.audience"}

// language is what expressions over a token are written in. There is one for the
// process, for it is immutable and takes longer to make than a policy.
var language = sync.OnceValues(func() (*Fields, error) {
	return newFields(principalNames, []string{nameTime}, cel.Variable(nameClaims, cel.MapType(cel.StringType, cel.DynType)))
})

// Expression is a compiled condition over a token; it is immutable and safe for
// concurrent use.
type Expression struct {
	Text    string      // as it was written
	Reads   []Read      // of claims that it names
	program cel.Program // nil for the expression true, which needs none
	san     []Read      // of principal.san
}

// compile reads one expression over a token. The error is for the person who wrote it.
func compile(text string) (*Expression, error) {
	env, err := language()
	if err != nil {
		return nil, err
	}
	ast, program, err := env.compile(text)
	switch {
	case err != nil:
		return nil, err
	case text == "true":
		return &Expression{Text: text}, nil
	}
	var r reader
	r.walk(ast.NativeRep().Expr(), Read{})
	return &Expression{Text: text, Reads: r.reads, program: program, san: r.san}, nil
}

// checking lets one expression be checked at a time: cel-go (0.33.2) makes what it
// suggests for an unknown name without a lock.
var checking sync.Mutex

// compile reads one expression, which must be of type bool and cheap whatever it
// meets. The error is for the person who wrote it.
func (f *Fields) compile(text string) (*cel.Ast, cel.Program, error) {
	switch {
	case strings.TrimSpace(text) == "":
		return nil, nil, errors.New("is empty; write a condition, or true")
	case len(text) > maxExpression:
		return nil, nil, fmt.Errorf("is longer than %d characters", maxExpression)
	}
	checking.Lock()
	ast, issues := f.env.Compile(text)
	checking.Unlock()
	if err := issues.Err(); err != nil {
		return nil, nil, fmt.Errorf("doesn't compile: %s; it can read %s", firstIssue(issues), f.names)
	}
	if t := ast.OutputType(); !t.IsExactType(cel.BoolType) {
		return nil, nil, fmt.Errorf("is of type %s; a condition is of type bool, as in x == \"y\"", cel.FormatCELType(t))
	}
	cost, err := f.env.EstimateCost(ast, sizes{})
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("its cost can't be estimated: %w", err)
	case cost.Max > maxEstimate:
		return nil, nil, fmt.Errorf("costs too much with a large token: up to %d steps, and the most is %d; nest fewer loops", cost.Max, maxEstimate)
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if cost.Max > cheap {
		options = append(options, cel.CostLimit(maxCost))
	}
	program, err := f.env.Program(ast, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("doesn't compile: %w", err)
	}
	return ast, program, nil
}

// firstIssue is the first thing wrong with an expression, with its place.
func firstIssue(issues *cel.Issues) string {
	first := issues.Errors()[0]
	text := first.Message
	if n := len(issues.Errors()) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Sprintf("line %d, column %d: %s", first.Location.Line(), first.Location.Column()+1, text)
}

// sizes bounds what the claims can hold, for the estimate of a cost.
type sizes struct{}

func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	switch kind := n.Type().Kind(); kind {
	case types.ListKind, types.MapKind:
		return &cost.SizeEstimate{Min: 0, Max: maxElements}
	case types.DynKind, types.AnyKind, types.StringKind, types.BytesKind:
		return &cost.SizeEstimate{Min: 0, Max: maxTextBytes}
	default:
		return nil
	}
}

func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// Holds evaluates the expression. The error is that it couldn't be decided: an
// *Undecided.
func (e *Expression) Holds(in *Input) (bool, error) {
	if e.program == nil {
		return true, nil
	}
	got, _, err := e.program.Eval(in)
	if b, ok := got.(types.Bool); ok && err == nil { // anything else than a boolean decides nothing
		return bool(b), nil
	}
	if _, cancelled := errors.AsType[interpreter.EvalCancelledError](err); cancelled {
		return false, &Undecided{why: fmt.Sprintf("the expression took more than %d steps", maxCost)}
	}
	// What CEL says isn't asked: its texts may repeat a value of the token, and of
	// two errors it tells the one that it met first.
	return false, e.undecided(in.Claims)
}

// undecided says why an evaluation over these claims failed, by what the
// expression names and the token has.
func (e *Expression) undecided(c claim.Set) *Undecided {
	for _, r := range e.Reads {
		// Where it asks anywhere whether the claim is there, its absence was thought of, and explains no failure.
		asked := slices.ContainsFunc(e.Reads, func(a Read) bool { return a.Asked && len(a.Path) == 1 && a.Path[0] == r.Path[0] })
		if !asked && c.Get(r.Path[0]).Kind() == claim.Missing {
			return &Undecided{Absent: r.Path[0]}
		}
	}
	for _, r := range e.Reads {
		if !r.Asked && claim.At(c, r.Path).Kind() == claim.Missing {
			return &Undecided{why: fmt.Sprintf("the token has no %s, which the expression reads", r.Name())}
		}
	}
	return &Undecided{why: "the expression met a value of a kind that it can't work with, or a member that isn't there"}
}

// Undecided is an evaluation that gave neither true nor false.
type Undecided struct {
	// Absent is the first claim that the expression reads by name, without asking
	// anywhere whether it is there, and that the token doesn't have; "" where there
	// is none: the failure then lies in the values.
	Absent string
	why    string
}

func (u *Undecided) Error() string {
	if u.Absent == "" {
		return u.why
	}
	return fmt.Sprintf("the token has no claim %s, which the expression reads", claim.Quote(u.Absent))
}
