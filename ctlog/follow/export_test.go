package follow

// ParseLeaf reads a MerkleTreeLeaf.
var ParseLeaf = parseLeaf
