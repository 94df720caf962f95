// Package deploy holds the tests of what is in deploy/ with the programs that read it in
// clusters: Helm, kubeconform, kube-score, promtool. The binary that was built runs as a pod
// would: with the files, owners and modes that Kubernetes gives, and nothing else. There
// is no cluster here.
//
// `make check-deploy` installs what is needed and runs it, and so does `make conformance`.
// `make check-deploy UPDATE=1` renders deploy/kubernetes again.
package deploy
