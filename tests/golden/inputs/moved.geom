photon_energy = 7100 eV
clen = 0.16
res = 13333.3
adu_per_photon = 1

left/min_fs = 0
left/max_fs = 511
left/min_ss = 0
left/max_ss = 511
left/fs = +0.999950x +0.010000y
left/ss = -0.010000x +0.999950y
left/corner_x = -33.0
left/corner_y = -255.5

right/min_fs = 512
right/max_fs = 1067
right/min_ss = 0
right/max_ss = 511
right/fs = +0.999950x +0.010000y
right/ss = -0.010000x +0.999950y
right/corner_x = 480.5
right/corner_y = -255.5

bad_patch/min_fs = 300
bad_patch/max_fs = 340
bad_patch/min_ss = 100
bad_patch/max_ss = 160
bad_patch/panel = left
